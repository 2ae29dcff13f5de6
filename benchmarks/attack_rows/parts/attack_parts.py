"""A detector and a data set that go wrong when told to, for the attacks.

Both are those of the dummy task of the tests, with its interfaces and almost no work.
"""

import errno
import os
import signal
import stat
import time

import torch
from dummy_task import DummyDataset, DummyDetector
from mmdet.models import DETECTORS
from torch import nn

from mmdet3d.datasets import DATASETS  # isort: skip


def break_calls(names):
    """Make system calls fail as they do on some file systems.

    Args:
        names: of "symlink", "link", "fsync_of_folders" and "chmod".
    """

    def fail(code):
        def call(*args, **kwargs):
            raise OSError(code, os.strerror(code), *map(str, args[:1]))

        return call

    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fail(errno.EINVAL)()
        real(descriptor)

    broken = {
        "symlink": fail(errno.EPERM),
        "link": fail(errno.EOPNOTSUPP),
        "chmod": fail(errno.EPERM),
        "fsync_of_folders": fsync,
    }
    for name in names:
        setattr(os, name.partition("_")[0], broken[name])


break_calls(filter(None, os.environ.get("ATTACKS_BREAK", "").split(",")))


class _BadGradient(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, values, number):
        ctx.number = number
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, ctx.number), None


def _harm(how):
    """End or stop this process."""
    if how == "raise":
        raise RuntimeError("this rank was told to fail")
    os.kill(os.getpid(), getattr(signal, how))


@DETECTORS.register_module()
class AttackDetector(DummyDetector):
    """The dummy detector with random draws, and with what an attack needs.

    Args:
        dropout: share of its features that is dropped in training.
        ballast: further weights, which make a checkpoint larger.
        bad: pairs of an iteration of this process (from 1) and what is not finite in it: "loss",
            "inf", "gradient" or "weight".
        harm: triples of an iteration of this process, a rank, and "raise" or the name of a signal.
        seconds: sleep of each iteration.
        batch_norm: False freezes the batch norm.
    """

    def __init__(
        self,
        width=4,
        dropout=0.0,
        ballast=0,
        bad=(),
        harm=(),
        seconds=0.0,
        batch_norm=True,
        **kwargs,
    ):
        super().__init__(width, **kwargs)
        self.ballast = nn.Parameter(torch.zeros(max(1, ballast)))
        self.dropout = dropout
        self.bad = dict(bad)
        self.harm = {number: (rank, how) for number, rank, how in harm}
        self.seconds = seconds
        self.batch_norm = batch_norm
        self.iteration = 0

    def train(self, mode=True):
        super().train(mode)
        if not self.batch_norm:
            self.norm.eval()
        return self

    def forward(self, img, img_metas, return_loss=True, **kwargs):
        if return_loss:
            self.iteration += 1
            time.sleep(self.seconds)
            rank, how = self.harm.get(self.iteration, (None, None))
            if how and rank == int(os.environ.get("RANK", 0)):
                _harm(how)
        result = super().forward(img, img_metas, return_loss, **kwargs)
        if not return_loss:
            return result
        result["loss_ballast"] = (self.ballast.sum() - 1).abs() * 1e-3
        how = self.bad.get(self.iteration)
        if how == "loss":
            result["loss_cls"] = result["loss_cls"] * float("nan")
        elif how == "inf":
            result["loss_cls"] = result["loss_cls"] + float("inf")
        elif how == "gradient":
            result["loss_cls"] = _BadGradient.apply(result["loss_cls"], float("nan"))
        elif how == "weight":  # the gradient of one weight alone
            result["loss_ballast"] = _BadGradient.apply(result["loss_ballast"], float("inf"))
        return result

    def _score(self, images):
        if self.training and self.dropout:
            images = nn.functional.dropout(images, self.dropout, training=True)
        return super()._score(images)


@DATASETS.register_module()
class AttackDataset(DummyDataset):
    """The dummy data set, whose training samples draw, and whose workers die when told to.

    Args:
        kill_at: token of the sample at which the worker is killed.
        seconds: sleep of each sample.
        classes: names of the classes instead of those of nuScenes.
    """

    def __init__(self, kill_at=None, seconds=0.0, classes=None, **kwargs):
        super().__init__(**kwargs)
        self.kill_at, self.seconds = kill_at, seconds
        if classes:
            self.CLASSES = list(classes)

    def __getitem__(self, index):
        time.sleep(self.seconds)
        if self.data_infos[index]["token"] == self.kill_at and not self.test_mode:
            os.kill(os.getpid(), signal.SIGKILL)
        item = super().__getitem__(index)
        if not self.test_mode:
            images = item["img"].data
            images += torch.rand(images.shape) * 0.1  # drawn from the sample's own generator
        return item
