"""Data sets and loaders of a config."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from mmcv import Config
from mmdet3d.datasets import build_dataset
from torch.utils.data import DataLoader, Dataset

from projects.bevformer.datasets.samplers import EpochShuffleSampler, SceneSampler
from projects.bevformer.engine.batch import collate_samples
from projects.bevformer.engine.build import data_sets_inside
from projects.bevformer.engine.config import config_errors
from projects.bevformer.engine.data_sections import info_files, inner_sections, one_file_each
from projects.bevformer.engine.distributed import get_rank, get_world_size
from projects.bevformer.engine.own_steps import check_own_steps
from projects.bevformer.engine.sample_loader import SampleLoader
from projects.bevformer.engine.seed import SeededDataset, seeded
from projects.bevformer.interruption import protect_worker

_TRAIN_SAMPLERS = ("DistributedGroupSampler", "DistributedSampler", "GroupSampler")


def build_train_dataset(cfg: Config) -> Dataset:
    """The data set of `data.train`.

    Raises:
        ValueError: a config key is wrong, a data set is empty, those to be joined do not fit each other, or
            see `check_own_steps`.
    """
    section = _section(cfg, "train")
    sections = dict(inner_sections(section, "data.train"))  # refuses keys that a wrapper drops
    for key, options in sections.items():
        if options.get("test_mode"):
            raise ValueError(f"{key}.test_mode is True: frames without annotations train nothing")
    # CBGSDataset draws its samples while it is built: the same in every process and after a resume.
    with config_errors("data.train"), seeded(0):
        try:
            dataset = build_dataset(one_file_each(section))
        except ZeroDivisionError as error:
            raise ValueError(
                "data.train balances classes with CBGSDataset, but some class has no object in "
                f"{', '.join(map(str, sum(map(info_files, sections.values()), [])))}: leave it out of "
                "`classes`, or train without CBGSDataset"
            ) from error
    _check_alike(data_sets_inside(dataset))
    check_own_steps(_not_empty(dataset, "data.train", section), "data.train")
    return dataset


def build_test_dataset(cfg: Config, split: str = "test") -> Dataset:
    """The data set of `data.val` or `data.test`, in test mode.

    Published configs set `samples_per_gpu` there; frames are evaluated one by one anyway.

    Raises:
        ValueError: a config key is wrong, the data set is empty, or see `check_own_steps`.
    """
    options = one_file_each(_section(cfg, split))
    if not isinstance(options, dict) or {"dataset", "datasets"} & set(options):
        raise ValueError(
            f"data.{split} joins or wraps data sets: only one info file can be scored, with a plain "
            f"data set; name it with data.{split}.ann_file, and evaluate others one by one"
        )
    options.pop("samples_per_gpu", None)
    with config_errors(f"data.{split}"):
        dataset = build_dataset(options, {"test_mode": True})
    check_own_steps(_not_empty(dataset, f"data.{split}", options), f"data.{split}")
    return dataset


def _section(cfg: Config, split: str) -> Any:
    section = (cfg.get("data") or {}).get(split)
    if not section:
        raise ValueError(f"data.{split} is {section!r}: it must be the dict of a data set")
    return section


def _check_alike(parts: Sequence[Any]) -> None:
    """Labels are numbers and images are stacked by camera: parts of a joined data set must agree."""
    for name in ("CLASSES", "cameras", "queue_length"):
        values = [getattr(part, name, None) for part in parts]
        first, *others = (tuple(v) if isinstance(v, list) else v for v in values)
        for part, value in zip(parts[1:], others):
            if first != value:
                raise ValueError(
                    f"data.train joins data sets whose {name.lower()} differ: {first} in "
                    f"{getattr(parts[0], 'ann_file', parts[0])} and {value} in "
                    f"{getattr(part, 'ann_file', part)}"
                )


def _not_empty(dataset: Dataset, key: str, section: Any) -> Dataset:
    if len(dataset) == 0:
        files = sum((info_files(options) for _, options in inner_sections(section, key)), [])
        raise ValueError(
            f"{key} has no samples ({', '.join(map(str, files))}): does the info file belong to this "
            "split, and was it made from the right version?"
        )
    return dataset


def workers_per_process(cfg: Config) -> int:
    """Data loading processes of each training or evaluating process."""
    return cfg.data.get("workers_per_gpu", 2)


def train_option(cfg: Config, name: str, default: Any) -> Any:
    """An option of the training loader: of `data.train_dataloader`, else of `data`."""
    return cfg.data.get("train_dataloader", {}).get(name, cfg.data.get(name, default))


def build_train_loader(
    cfg: Config, dataset: Dataset, seed: int, pin_memory: bool = False
) -> DataLoader:
    """Shuffled batches; the order depends only on seed and epoch.

    Batches do not depend on the number of workers.

    Args:
        cfg: mmcv.Config.
        dataset: of `build_train_dataset`.
        seed: of the order and of the samples' random choices.
        pin_memory: for a run on CUDA: only copies from pinned memory are asynchronous.

    Raises:
        ValueError: `data.shuffler_sampler` names an unknown sampler.
    """
    sampler_type = cfg.data.get("shuffler_sampler", {}).get("type", "DistributedSampler")
    if sampler_type not in _TRAIN_SAMPLERS:
        raise ValueError(
            f"data.shuffler_sampler.type is {sampler_type!r}: it must be one of {_TRAIN_SAMPLERS} "
            "(all of them shuffle alike here)"
        )
    workers = train_option(cfg, "workers_per_gpu", workers_per_process(cfg))
    sampler = EpochShuffleSampler(dataset, get_rank(), get_world_size(), seed)
    return SampleLoader(
        SeededDataset(dataset),
        batch_size=train_option(cfg, "samples_per_gpu", 1),
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate_samples,
        pin_memory=pin_memory,
        persistent_workers=workers > 0 and train_option(cfg, "persistent_workers", False),
        # Workers get their seed from it: from the global one each start of workers would move it.
        generator=torch.Generator(),
        worker_init_fn=protect_worker,
    )


def build_test_loader(dataset: Dataset, workers: int, pin_memory: bool = False) -> DataLoader:
    """Single frames: each process gets whole scenes, in time order."""
    return SampleLoader(
        dataset,
        batch_size=1,
        sampler=SceneSampler(dataset, get_rank(), get_world_size()),
        num_workers=workers,
        collate_fn=collate_samples,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        worker_init_fn=protect_worker,
    )
