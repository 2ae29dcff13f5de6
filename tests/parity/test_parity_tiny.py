"""BEVFormer-tiny computes what the original computes from the same weights and inputs."""

from pathlib import Path

import numpy as np
import parity_inputs
import pytest
import torch

from projects.bevformer import plugin  # noqa: F401
from projects.bevformer.engine.config import load_config
from projects.bevformer.geometry.boxes import old_to_new_boxes

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip
from mmdet3d.models import build_model  # isort: skip

pytestmark = pytest.mark.parity

CONFIG = Path(__file__).parents[2] / "configs" / "bevformer" / "bevformer_tiny.py"
LOGIT_TOLERANCE = 1e-3
CODE_TOLERANCE = 2e-3
LOSS_TOLERANCE = 1e-3  # relative


@pytest.fixture(scope="module")
def expected():
    with np.load(Path(__file__).with_name("expected.npz")) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model():
    cfg = load_config(CONFIG)
    model = build_model(cfg.model, train_cfg=cfg.get("train_cfg"), test_cfg=cfg.get("test_cfg"))
    model.load_state_dict(parity_inputs.parity_weights(model.state_dict()), strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def outputs(model):
    """What the head returns for frame 0 and, given its BEV, frame 1."""
    outputs, prev_bev = [], None
    with torch.no_grad():
        for frame in range(2):
            metas = parity_inputs.parity_metas(frame, LiDARInstance3DBoxes)
            feats = model.extract_feat(img=parity_inputs.parity_images(frame), img_metas=metas)
            outputs.append(model.pts_bbox_head(feats, metas, prev_bev=prev_bev))
            prev_bev = outputs[-1]["bev_embed"]
    return outputs


@pytest.mark.parametrize("frame", [0, 1])
def test_bev_is_the_originals(outputs, expected, frame):
    bev = outputs[frame]["bev_embed"].reshape(-1, 256)[::37, ::5]
    np.testing.assert_allclose(bev.numpy(), expected[f"bev{frame}"], rtol=0, atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("frame", [0, 1])
def test_logits_are_the_originals(outputs, expected, frame):
    logits = outputs[frame]["all_cls_scores"].numpy()
    np.testing.assert_allclose(logits, expected[f"cls{frame}"], rtol=0, atol=LOGIT_TOLERANCE)


@pytest.mark.parametrize("frame", [0, 1])
def test_box_codes_are_the_originals(outputs, expected, frame):
    codes = outputs[frame]["all_bbox_preds"].numpy()
    np.testing.assert_allclose(codes, expected[f"box{frame}"], rtol=0, atol=CODE_TOLERANCE)


def test_decoded_boxes_are_the_originals(model, outputs, expected):
    (decoded,) = model.pts_bbox_head.bbox_coder.decode(outputs[1])
    np.testing.assert_array_equal(decoded["labels"].numpy(), expected["dec_labels"])
    np.testing.assert_allclose(decoded["scores"].numpy(), expected["dec_scores"], atol=1e-4)
    np.testing.assert_allclose(
        decoded["bboxes"].numpy(), expected["dec_bboxes"], atol=CODE_TOLERANCE
    )


def test_losses_are_the_originals(model, outputs, expected):
    boxes, labels = parity_inputs.parity_boxes()
    ground_truth = LiDARInstance3DBoxes(old_to_new_boxes(boxes), box_dim=9)
    losses = model.pts_bbox_head.loss([ground_truth], [labels], outputs[1])
    expected_losses = {
        key[len("loss_") :]: float(np.squeeze(value))
        for key, value in expected.items()
        if key.startswith("loss_")
    }
    assert {key: float(value) for key, value in losses.items()} == pytest.approx(
        expected_losses, rel=LOSS_TOLERANCE
    )
