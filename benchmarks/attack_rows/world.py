"""The small world of the attacks: a temporary folder, recipes of seconds, and what they left."""

import hashlib
import itertools
import json
import shutil
import tempfile
import textwrap
from pathlib import Path

import torch

from attack_rows.processes import ROOT, Forked, Started, command

RECIPE = """
_base_ = ["{root}/configs/_base_/default_runtime.py"]
custom_imports = dict(_delete_=True, imports=["attack_parts"])
model = dict(type="AttackDetector", dropout=0.2)
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=0,
    train=dict(type="AttackDataset"),
    val=dict(type="AttackDataset", samples_per_gpu=1),
    test=dict(type="AttackDataset", samples_per_gpu=1),
)
optimizer = dict(type="AdamW", lr=1e-2, weight_decay=0.01)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(policy="CosineAnnealing", by_epoch=False, min_lr_ratio=1e-3)
log_config = dict(_delete_=True, interval=1, hooks=[dict(type="TextLoggerHook")])
checkpoint_config = dict(interval=1, by_epoch=False)
evaluation = None
runner = dict(type="EpochBasedRunner", max_epochs=2)
"""

# A BEVFormer with all of its parts, on pictures of 90 x 160: half a second an iteration.
SMALL_RECIPE = """
_base_ = ["{root}/configs/bevformer/bevformer_tiny.py"]
data_root = "{data_root}/"
info_files = "{infos}/synthetic_infos_temporal_"
image_scale = 0.4  # of 225 x 400
bev_h = 20
bev_w = 20
embed_dims = 64
num_query = 60
max_num = 60
workers_per_gpu = 0
queue_length = 2
model = dict(
    pretrained=None,
    img_backbone=dict(
        depth=18, base_channels=16, norm_cfg=dict(requires_grad=True), norm_eval=False,
        frozen_stages=-1, style="pytorch",
    ),
    img_neck=dict(in_channels=[128]),
    pts_bbox_head=dict(
        transformer=dict(encoder=dict(num_layers=2), decoder=dict(num_layers=2)),
    ),
)
load_from = None
total_epochs = 2
runner = dict(type="EpochBasedRunner", max_epochs=2)
log_config = dict(_delete_=True, interval=1, hooks=[dict(type="TextLoggerHook")])
"""


class World:
    """What the rows share.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._numbers = itertools.count()
        self._made = {}
        self._running = []

    def new(self, name="work"):
        """An empty folder."""
        path = self.folder / f"{name}_{next(self._numbers)}"
        path.mkdir()
        return path

    def file(self, name, content=""):
        """A new file with this name, in a folder of its own."""
        path = self.new("file") / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(textwrap.dedent(content))
        return path

    def once(self, name, make):
        """`make()`, the first time; its result from then on."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def recipe(self, more="", name="recipe.py"):
        """A config of the dummy task, with further lines."""
        return self.file(name, RECIPE.format(root=ROOT) + textwrap.dedent(more))

    def small_recipe(self, more=""):
        """A config of a small BEVFormer on the synthetic data set, with further lines."""
        infos = self.infos()
        text = SMALL_RECIPE.format(root=ROOT, data_root=self.data_root(), infos=infos)
        return self.file("small.py", text + textwrap.dedent(more))

    def data_root(self):
        """A synthetic data set of two scenes of four frames."""

        def make():
            from projects.synthetic_nuscenes.data_set import create_data_set

            return create_data_set(
                self.folder / "data", seed=0, image_hw=(225, 400), frames_per_scene=4,
                scenes=("scene-0061", "scene-0103"), workers=1, show_progress=False,
            )  # fmt: skip

        return self.once("data", make)

    def infos(self):
        """The folder of its info files."""

        def make():
            folder, root = self.new("infos"), self.data_root()
            result = self.call(
                "tools/create_data.py", "nuscenes", "--root-path", root, "--out-dir", folder,
                "--extra-tag", "synthetic", "--version", "v1.0-mini", "--canbus", root,
            )  # fmt: skip
            if result.code != 0:
                raise RuntimeError(result.text)
            return folder

        return self.once("infos", make)

    def trained(self):
        """Work dir of four iterations of the dummy task, with a checkpoint after each."""

        def make():
            work = self.new("trained")
            result = self.train(
                self.recipe(), work, "--max-iters", 4, **{"checkpoint_config.interval": 1}
            )
            if result.code != 0:
                raise RuntimeError(result.text)
            return work

        return self.once("trained", make)

    def small_trained(self):
        """Config and checkpoint of one iteration of the small BEVFormer."""

        def make():
            config, work = self.small_recipe(), self.new("small")
            result = self.train(config, work, "--max-iters", 1, "--no-validate")
            if result.code != 0:
                raise RuntimeError(result.text)
            return config, work / "iter_1.pth"

        return self.once("small_trained", make)

    def fork(self, script, *arguments, before=None, **variables):
        """A script in a fork of this process."""
        started = Forked(script, arguments, self.new("log") / "log", before, **variables)
        self._running.append(started)
        return started

    def call(self, script, *arguments, before=None, seconds=60, **variables):
        """A script in a fork of this process, until its end."""
        return self.fork(script, *arguments, before=before, **variables).finish(seconds)

    def start(self, script, *arguments, processes=1, launcher=(), **variables):
        """A script in a process of its own, or in several under torchrun."""
        words = command(script, *arguments, processes=processes, launcher=launcher)
        started = Started(words, self.new("log") / "log", **variables)
        self._running.append(started)
        return started

    def train(self, config, work, *flags, before=None, seconds=60, processes=1, **options):
        """tools/train.py until its end, on the CPU, with seed 0.

        Args:
            config: a file.
            work: the work dir.
            flags: further arguments.
            before: called in the fork before the tool.
            seconds: until it is killed.
            processes: more than one runs torchrun.
            options: of the config, with dots in their names.
        """
        words = train_words(config, work, *flags, **options)
        if processes > 1:
            return self.start(*words, processes=processes).finish(seconds)
        return self.call(*words, before=before, seconds=seconds)

    def clean_up(self):
        """End what a row left running."""
        for started in self._running:
            started.kill()
        self._running.clear()

    def remove(self):
        """Delete the folder."""
        self.clean_up()
        shutil.rmtree(self.folder, ignore_errors=True)


def train_words(config, work, *flags, **options):
    """tools/train.py and its arguments, on the CPU, with seed 0."""
    words = ["tools/train.py", derive(config, options), "--work-dir", work, "--device", "cpu"]
    return [*words, *([] if "--seed" in flags else ["--seed", 0]), *flags]


def derive(config, options):
    """A config file on top of another one.

    Args:
        config: a file.
        options: dotted key -> value; a dict replaces the whole section.
    """
    if not options:
        return config
    config, sections = Path(config), {"_base_": [str(config)]}
    for key, value in options.items():
        *path, last = key.split(".")
        section = sections
        for name in path:
            section = section.setdefault(name, {})
        value = str(value) if isinstance(value, Path) else value
        section[last] = {"_delete_": True, **value} if isinstance(value, dict) else value
    folder = Path(tempfile.mkdtemp(dir=config.parent))
    path = folder / config.name
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in sections.items()))
    return path


def load(path):
    """A checkpoint of one's own, as PyTorch reads it without executing anything."""
    if torch.__version__ < "1.13":
        return torch.load(str(path), map_location="cpu")
    return torch.load(str(path), map_location="cpu", weights_only=True)


def digest(path):
    """sha256 of weights and optimizer of a checkpoint."""
    content = load(path)
    digest = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            value = value.contiguous().view(-1)
            digest.update(str(value.dtype).encode())
            value = value.float() if value.dtype == torch.bfloat16 else value  # unknown to numpy
            digest.update(value.numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for one in value:
                add(one)
        else:
            digest.update(repr(value).encode())

    for key in ("state_dict", "optimizer", "raw_weights"):
        if content.get(key) is not None:
            add(content[key])
    return digest.hexdigest()[:16]


def records(work, mode="train"):
    """Records of all logs of a work dir, in order."""
    lines = [
        line
        for path in sorted(Path(work).glob("*.log.json"))
        for line in path.read_text().splitlines()
    ]
    parsed = [json.loads(line) for line in lines if line.endswith("}")]
    return [record for record in parsed if record.get("mode") == mode]


def losses(work):
    """(epoch, iteration, loss, learning rate, gradient norm) of each logged iteration."""
    keys = ("epoch", "iter", "loss", "lr", "grad_norm")
    return [tuple(record.get(key) for key in keys) for record in records(work)]


def checkpoints(work):
    """Numbered checkpoints of a work dir, oldest first."""
    return sorted(Path(work).glob("*_*.pth"), key=lambda path: path.stat().st_mtime_ns)


def tensors_of(value):
    """All tensors inside of dicts and lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_of(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_of(one)


def is_finite(path):
    """Whether all numbers of a checkpoint are finite."""
    return all(
        bool(torch.isfinite(one).all()) for one in tensors_of(load(path)) if one.is_floating_point()
    )


def temporary_files(folder):
    """Names of what a killed run left in a work dir."""
    return sorted(
        path.name for path in Path(folder).rglob("*") if ".tmp" in path.name or path.name[0] == "."
    )
