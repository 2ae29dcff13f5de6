"""The recipes `*_fast.py` give the network the input of the published recipes."""

import numpy as np
import pytest
import torch
from mmcv.parallel import collate
from tool_runs import REPOSITORY

from projects.bevformer import compat  # noqa: F401
from projects.bevformer.datasets.samplers import SampleKey
from projects.bevformer.engine.bev_inputs import build_preprocessor
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.config_keys import READ_KEYS
from projects.bevformer.engine.data_loading import build_test_dataset, build_train_dataset
from projects.bevformer.engine.seed import SeededDataset

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=["tiny", "small"])
def recipes(request, synthetic_infos):
    """The published config and the fast one."""
    folder = REPOSITORY / "configs" / "bevformer"
    return [
        load_config(folder / f"bevformer_{request.param}{end}.py", synthetic_infos.two_scenes)
        for end in ("", "_fast")
    ]


def assert_same_input(published, fast, cfg):
    """Images and metas of one frame of both, the fast one preprocessed as in the model.

    OpenCV and torch round colours and resize differently: up to a hundredth of a grey level.
    """
    preprocessor = build_preprocessor(cfg)
    (meta,) = preprocessor.describe([fast[1]], fast[0].shape[1:3])
    images = preprocessor(fast[0][None], [meta])
    grey_level = 1 / min(cfg.model.data_preprocessor.std)
    torch.testing.assert_close(images[0], published[0], rtol=1e-4, atol=1e-2 * grey_level)
    for key in ("lidar2img", "can_bus"):
        np.testing.assert_allclose(meta[key], published[1][key], rtol=1e-12)
    for key in ("img_shape", "sample_idx", "scene_token"):
        assert meta[key] == published[1][key]


@pytest.mark.parametrize("epoch", [0, 1])
def test_training_input_is_equal(recipes, epoch):
    key = SampleKey(seed=0, epoch=epoch, index=2)
    published, fast = (SeededDataset(build_train_dataset(cfg))[key] for cfg in recipes)
    assert torch.equal(published["gt_labels_3d"].data, fast["gt_labels_3d"].data)
    boxes = [sample["gt_bboxes_3d"].data.tensor for sample in (published, fast)]
    assert torch.equal(*boxes)
    images = [sample["img"].data for sample in (published, fast)]
    metas = [sample["img_metas"].data for sample in (published, fast)]
    assert images[0].shape[0] == 3
    for frame in range(3):
        sides = [(image[frame], meta[frame]) for image, meta in zip(images, metas)]
        assert_same_input(*sides, recipes[1])


def test_test_input_is_equal(recipes):
    published, fast = (collate([build_test_dataset(cfg)[1]]) for cfg in recipes)
    sides = [
        (batch["img"][0].data[0][0], batch["img_metas"][0].data[0][0])
        for batch in (published, fast)
    ]
    assert_same_input(*sides, recipes[1])


def test_everything_else_is_equal(recipes):
    published, fast = (
        {key: value for key, value in cfg._cfg_dict.to_dict().items() if key in READ_KEYS}
        for cfg in recipes
    )
    assert fast["model"].pop("data_preprocessor")
    for settings in (published, fast):
        for split in ("train", "val", "test"):
            del settings["data"][split]["pipeline"]
    assert fast == published
