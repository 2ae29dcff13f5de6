"""Fixtures that several test folders share."""

import logging

import pytest

from projects.synthetic_nuscenes.data_set import create_data_set

pytest_plugins = ["info_fixtures"]


@pytest.fixture(autouse=True)
def run_logger_propagates(monkeypatch):
    """A run in this process keeps its loggers from the root logger, where `caplog` listens.

    pytest 9.2 also listens at loggers that do not propagate, and these share their handlers.
    """
    for name in ("mmdet3d", "projects.bevformer.ops", "projects.bevformer.files"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory):
    """Data root of two synthetic scenes (one of mini_train, one of mini_val) of four key frames.

    Pictures are 225 x 400; the CAN bus lies in `synthetic_root / "can_bus"`.
    """
    return create_data_set(
        tmp_path_factory.mktemp("synthetic") / "data",
        seed=0,
        image_hw=(225, 400),
        frames_per_scene=4,
        scenes=("scene-0061", "scene-0103"),
        workers=1,
        show_progress=False,
    )
