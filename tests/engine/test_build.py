"""Building the network of a config, and camera embeddings of checkpoints."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmcv import Config
from tiny_bevformer import CHANNELS, head_config

from projects.bevformer.engine.build import build_detector, init_weights
from projects.bevformer.engine.checkpoint import load_checkpoint, load_weights, save_checkpoint
from projects.bevformer.engine.evaluate import build_trained_model
from projects.bevformer.engine.runner import SafeIterBasedRunner
from projects.bevformer.engine.training_model import TrainingModel
from projects.bevformer.nuscenes.spec import CAMERAS

LOGGER = logging.getLogger("test")
CPU = torch.device("cpu")
EMBEDDINGS = "pts_bbox_head.transformer.cams_embeds"
FIVE = ("FRONT", "LEFT", "RIGHT", "BACK_LEFT", "BACK_RIGHT")


def dataset(cameras=None):
    """What is read of a data set; without names its cameras are those of nuScenes."""
    names = {} if cameras is None else {"cameras": cameras}
    return SimpleNamespace(CLASSES=["car", "truck", "bus"], **names)


@pytest.fixture
def config():
    backbone = dict(
        type="ResNet", depth=18, base_channels=8, out_indices=(2, 3), norm_cfg=dict(type="BN")
    )
    model = dict(
        type="BEVFormer",
        img_backbone=backbone,
        img_neck=dict(type="FPN", in_channels=[32, 64], out_channels=CHANNELS, num_outs=2),
        pts_bbox_head=head_config(),
    )
    del model["pts_bbox_head"]["transformer"]["num_cams"]
    return Config({"model": model, "data": {"test": {}, "train": {}}})


def save(path, cfg, cameras, stamp=True):
    """A checkpoint whose embeddings hold the number of the camera in `cameras`."""
    detector = build_detector(cfg, dataset(cameras))
    rows = torch.arange(len(cameras), dtype=torch.float32)
    weight = dict(detector.named_parameters())[EMBEDDINGS]
    weight.data[:] = rows[:, None]
    if not stamp:
        del detector.CAMERAS
    save_checkpoint(path, detector, meta={"epoch": 1, "iter": 1})
    return path


def embeddings(detector):
    return dict(detector.named_parameters())[EMBEDDINGS][:, 0].tolist()


def test_the_data_set_decides_the_number_of_cameras(config):
    assert len(embeddings(build_detector(config, dataset(FIVE)))) == 5
    assert len(embeddings(build_detector(config, dataset()))) == 6
    assert "num_cams" not in config.model.pts_bbox_head.transformer  # the config is not modified


def test_num_cams_of_the_config_must_agree_with_the_data(config):
    config.model.pts_bbox_head.transformer.num_cams = 6
    with pytest.raises(ValueError, match=r"num_cams is 6, .* has 5 cameras \(FRONT, LEFT, .*leave"):
        build_detector(config, dataset(FIVE))
    build_detector(config, dataset())
    build_detector(config)  # without data nothing is compared


def test_the_official_centre_needs_the_vehicle_in_the_middle(config):
    head = config.model.pts_bbox_head
    head.transformer.rotate_center = [100, 100]
    build_detector(config)
    head.transformer.encoder.pc_range = head.bbox_coder.pc_range = [-8.0, 0.0, -2.0, 8.0, 12.0, 2.0]
    with pytest.raises(ValueError, match=r"rotate_center is \[100, 100\], .*\(2.5, 0.0\).*leave"):
        build_detector(config)
    for centre in (None, [2.5, 0]):
        head.transformer.rotate_center = centre
        build_detector(config)


def test_classes_and_cameras_are_stamped_into_checkpoints(config, tmp_path):
    meta = load_checkpoint(save(tmp_path / "a.pth", config, FIVE))["meta"]
    assert meta["CAMERAS"] == list(FIVE)
    assert meta["CLASSES"] == ["car", "truck", "bus"]


def test_embeddings_of_another_camera_order_are_reordered(config, tmp_path, caplog):
    path = save(tmp_path / "a.pth", config, FIVE)
    order = ("LEFT", "BACK_RIGHT", "FRONT", "RIGHT", "BACK_LEFT")
    with caplog.at_level(logging.INFO):
        detector = build_trained_model(config, path, dataset(order), CPU, LOGGER)
    assert embeddings(detector) == [1, 4, 0, 2, 3]
    assert "camera embeddings reordered to LEFT, BACK_RIGHT" in caplog.text
    same = build_trained_model(config, path, dataset(FIVE), CPU, LOGGER)
    assert embeddings(same) == [0, 1, 2, 3, 4]


def test_weights_without_camera_names_have_nuscenes_order(config, tmp_path):
    path = save(tmp_path / "a.pth", config, CAMERAS, stamp=False)
    assert "CAMERAS" not in load_checkpoint(path)["meta"]
    order = CAMERAS[::-1]
    assert embeddings(build_trained_model(config, path, dataset(order), CPU, LOGGER)) == [
        5, 4, 3, 2, 1, 0
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("saved", "stamp", "cameras", "message"),
    [
        (FIVE, True, CAMERAS, r"5 cameras \(FRONT, .*has 6 \(CAM_FRONT, "),
        (FIVE, False, CAMERAS, r"5 cameras \(not named\), the data set has 6"),
        (CAMERAS, False, FIVE, r"6 cameras \(CAM_FRONT, .*has 5 \(FRONT, "),
        (FIVE, True, (*FIVE[:4], "TOP"), r"BACK_RIGHT\), the data set has 5 \(.*TOP\)"),
    ],
)
def test_weights_of_other_cameras_are_a_start_only(
    config, tmp_path, caplog, saved, stamp, cameras, message
):
    path = save(tmp_path / "a.pth", config, saved, stamp)
    detector = build_detector(config, dataset(cameras))
    with pytest.raises(ValueError, match=message):
        load_weights(detector, load_checkpoint(path), path, LOGGER)
    before = embeddings(detector)
    load_weights(detector, load_checkpoint(path), path, LOGGER, complete=False)
    assert embeddings(detector) == before
    wanted = ", ".join(cameras)
    assert f"with other cameras than {wanted}: their embeddings start anew" in caplog.text


def test_resume_reorders_the_optimizer_state_too(config, tmp_path):
    def runner(cameras):
        detector = build_detector(config, dataset(cameras))
        optimizer = torch.optim.AdamW(detector.parameters())
        model = TrainingModel(detector, CPU)
        runner = SafeIterBasedRunner(
            model, optimizer=optimizer, work_dir=str(tmp_path), logger=LOGGER, max_iters=9, meta={}
        )
        runner.epoch_length = 9
        return runner, dict(detector.named_parameters())[EMBEDDINGS]

    first, weight = runner(FIVE)
    weight.grad = torch.arange(5.0)[:, None].expand_as(weight).clone()
    first.optimizer.step()
    first.save_checkpoint(str(tmp_path), "a.pth", create_symlink=False)

    order = ("LEFT", "BACK_RIGHT", "FRONT", "RIGHT", "BACK_LEFT")
    second, other = runner(order)
    second.resume(str(tmp_path / "a.pth"))
    rows = [1, 4, 0, 2, 3]
    assert torch.equal(other, weight[rows])
    for name in ("exp_avg", "exp_avg_sq"):
        before, after = first.optimizer.state[weight][name], second.optimizer.state[other][name]
        assert before.abs().sum() > 0
        assert torch.equal(after, before[rows])


def test_the_head_needs_as_many_classes_as_the_data_set():
    cfg = Config({"model": {"type": "DummyDetector", "pts_bbox_head": {"num_classes": 2}}})
    with pytest.raises(
        ValueError, match=r"num_classes is 2, but the data set has 1 classes \(car\)"
    ):
        build_detector(cfg, SimpleNamespace(CLASSES=["car"]))


def test_initialisation_is_not_logged_parameter_by_parameter(config, caplog):
    detector = build_detector(config, dataset())
    caplog.clear()
    with caplog.at_level(logging.INFO):
        init_weights(detector, config, LOGGER)
        LOGGER.info("afterwards")
    assert caplog.messages == ["afterwards"]


@pytest.mark.parametrize(
    ("frozen", "load_from", "warned"),
    [(1, None, True), (1, "weights.pth", False), (-1, None, False)],
)
def test_warns_about_frozen_random_stages(config, frozen, load_from, warned, caplog):
    config.model.img_backbone.frozen_stages = frozen
    config.load_from = load_from
    init_weights(build_detector(config, dataset()), config, LOGGER)
    assert ("freezes stages of random weights, 5 (img_backbone.conv1" in caplog.text) == warned
