"""The models have the parameters and buffers of the official checkpoints, and no others."""

import json
from pathlib import Path

import pytest

from projects.bevformer import plugin  # noqa: F401
from projects.bevformer.engine.config import load_config

from mmdet3d.models import build_model  # isort: skip

pytestmark = pytest.mark.parity

CONFIGS = Path(__file__).parents[2] / "configs" / "bevformer"


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_state_dict_is_the_officials(size):
    cfg = load_config(CONFIGS / f"bevformer_{size}.py")
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == json.loads(Path(__file__).with_name(f"state_dict_{size}.json").read_text())
