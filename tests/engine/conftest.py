"""A small config around the dummy task."""

import os
import textwrap
from pathlib import Path

import pytest
import torch

from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.train import train

REPOSITORY = Path(__file__).resolve().parents[2]
HELPERS = REPOSITORY / "tests" / "helpers"


@pytest.fixture
def quick(monkeypatch):
    """Runs without mmcv's three seconds of sleep, its look at compilers, and threads for tiny sums."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("projects.bevformer.engine.train.collect_env", lambda: {"Python": "3"})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config_path(tmp_path):
    """A config file that trains the dummy detector for two epochs and evaluates after each."""
    path = tmp_path / "dummy.py"
    path.write_text(
        textwrap.dedent(
            f"""
            _base_ = ["{REPOSITORY}/configs/_base_/default_runtime.py"]
            custom_imports = dict(_delete_=True, imports=["dummy_task"])
            model = dict(type="DummyDetector")
            data = dict(
                samples_per_gpu=2,
                workers_per_gpu=0,
                train=dict(type="DummyDataset"),
                val=dict(type="DummyDataset", samples_per_gpu=1),
                test=dict(type="DummyDataset", samples_per_gpu=1),
                shuffler_sampler=dict(type="DistributedGroupSampler"),
                nonshuffler_sampler=dict(type="DistributedSampler"),
            )
            optimizer = dict(
                type="AdamW", lr=1e-2, weight_decay=0.01,
                paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=0.1))),
            )
            optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
            lr_config = dict(
                policy="CosineAnnealing", warmup="linear", warmup_iters=2, warmup_ratio=1 / 3,
                min_lr_ratio=1e-3,
            )
            log_config = dict(interval=1)
            evaluation = dict(interval=1, pipeline=[])
            total_epochs = 2
            runner = dict(type="EpochBasedRunner", max_epochs=2)
            work_dir = "{tmp_path}/work"
            """
        )
    )
    return path


@pytest.fixture
def run(config_path, quick, tmp_path):
    """Train the dummy config with overrides; returns the work dir."""

    def run(options=None, work_dir="work", **arguments):
        cfg = load_config(config_path, options)
        cfg.work_dir = str(tmp_path / work_dir)
        os.makedirs(cfg.work_dir, exist_ok=True)
        train(cfg, torch.device("cpu"), "dummy.py", **{"seed": 0, **arguments})
        return tmp_path / work_dir

    return run


@pytest.fixture
def tool_environment():
    """Environment in which scripts find this checkout and `dummy_task`."""
    path = os.pathsep.join(map(str, (REPOSITORY, HELPERS)))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
