"""BEVFormer-tiny computes the original's numbers with every backend that runs on a CPU."""

import numpy as np
import parity_inputs
import pytest
import torch
from test_parity_tiny import CODE_TOLERANCE, LOGIT_TOLERANCE, expected, model  # noqa: F401

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("backend", ["reference", "lean"])
def test_outputs_are_the_originals(model, expected, backend, monkeypatch):  # noqa: F811
    monkeypatch.setenv("BEVFORMER_MSDA", backend)
    prev_bev = None
    with torch.no_grad():
        for frame in range(2):
            metas = parity_inputs.parity_metas(frame, LiDARInstance3DBoxes)
            feats = model.extract_feat(img=parity_inputs.parity_images(frame), img_metas=metas)
            outputs = model.pts_bbox_head(feats, metas, prev_bev=prev_bev)
            prev_bev = outputs["bev_embed"]
    for key, name, tolerance in [
        ("all_cls_scores", "cls1", LOGIT_TOLERANCE),
        ("all_bbox_preds", "box1", CODE_TOLERANCE),
    ]:
        np.testing.assert_allclose(outputs[key].numpy(), expected[name], rtol=0, atol=tolerance)
