import copy

import numpy as np
import pytest
import torch
from mmcv.runner import CheckpointLoader
from mmdet.models.builder import build_neck
from tiny_bevformer import (
    CAMERAS,
    CHANNELS,
    build_detector,
    images,
    inference_batch,
    make_meta,
    training_batch,
)

import projects.bevformer.model.detection.head as head_module
from projects.bevformer.model import Frame
from projects.bevformer.model.perception_transformer import PerceptionTransformer

from mmdet3d.core.bbox import LiDARInstance3DBoxes  # isort: skip


@pytest.fixture(scope="module")
def detector():
    return build_detector()


@pytest.fixture(autouse=True)
def _fresh_memory(detector):
    detector.reset_memory()
    detector.train()
    detector.zero_grad()


def run_test(model, *args, **kwargs):
    """Boxes of the next frame, in eval mode and without gradient."""
    model.eval()
    with torch.no_grad():
        return model(return_loss=False, **inference_batch(*args, **kwargs))


def assert_same_boxes(results, others):
    assert len(results) == len(others)
    for result, other in zip(results, others):
        result, other = result["pts_bbox"], other["pts_bbox"]
        torch.testing.assert_close(result["scores_3d"], other["scores_3d"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            result["boxes_3d"].tensor, other["boxes_3d"].tensor, rtol=1e-3, atol=1e-3
        )
        assert torch.equal(result["labels_3d"], other["labels_3d"])


def same_boxes(results, others):
    try:
        assert_same_boxes(results, others)
    except AssertionError:
        return False
    return True


def snapshot(value):
    """A deep copy that can be compared with `equal`."""
    return copy.deepcopy(value)


def equal(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    if isinstance(a, LiDARInstance3DBoxes):
        return torch.equal(a.tensor, b.tensor)
    return a == b


# Training


def test_training_gives_losses_and_gradients(detector):
    losses = detector(return_loss=True, **training_batch((0, 1)))
    assert set(losses) == {"loss_cls", "loss_bbox", "d0.loss_cls", "d0.loss_bbox"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad and not name.endswith("level_embeds"):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_batch_with_scene_start_equals_single_samples(detector):
    # Sample 1 starts its scene at the last frame, sample 0 in the history.
    starts = {(1, 2), (0, 1)}
    numbers = (3, 2)
    together = detector(return_loss=True, **training_batch((0, 1), 3, starts, numbers))
    alone = [
        detector(return_loss=True, **training_batch((sample,), 3, starts, numbers))
        for sample in range(2)
    ]
    for key, value in together.items():
        total = sum(losses[key] * number for losses, number in zip(alone, numbers))
        torch.testing.assert_close(value, total / sum(numbers), rtol=1e-4, atol=1e-5)


def test_a_scene_start_forgets_the_frames_before(detector):
    def losses(starts, first_frames):
        batch = training_batch((0,), 3, starts)
        batch["img"][:, :2] = first_frames
        return detector(return_loss=True, **batch)["loss_cls"].item()

    noise, zeros = torch.randn(2, CAMERAS, 3, 32, 64), torch.zeros(2, CAMERAS, 3, 32, 64)
    assert losses({(0, 2)}, noise) == losses({(0, 2)}, zeros)
    assert losses(set(), noise) != losses(set(), zeros)


def test_a_scene_start_in_the_history_forgets_the_frames_before_it(detector):
    def bev(starts, first_frame):
        batch = training_batch((0,), 3, starts)
        batch["img"][:, 0] = first_frame
        return detector.bev_of_queue(batch["img"], batch["img_metas"]).bev

    noise, zeros = torch.randn(CAMERAS, 3, 32, 64), torch.zeros(CAMERAS, 3, 32, 64)
    assert torch.equal(bev({(0, 1)}, noise), bev({(0, 1)}, zeros))
    assert not torch.equal(bev(set(), noise), bev(set(), zeros))


def test_a_queue_of_one_frame_has_no_history(detector):
    batch = training_batch((0,), frames=1)
    frame = Frame.from_metas([batch["img_metas"][0][0]])
    bev = detector.bev_of_queue(batch["img"], batch["img_metas"]).bev
    assert torch.equal(bev, detector.encode(batch["img"][:, 0], frame))
    losses = detector(return_loss=True, **batch)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_history_runs_in_eval_without_grad_and_restores_modes(monkeypatch):
    model = build_detector(dropout=0.5, use_grid_mask=True)
    model.pts_bbox_head.transformer.decoder.eval()  # a mixture of modes
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    calls, head = [], model.pts_bbox_head
    encode = head.encode

    def recorded(feats, frame, prev_bev=None):
        bev = encode(feats, frame, prev_bev)
        calls.append((any(m.training for m in model.modules()), bev, prev_bev))
        return bev

    monkeypatch.setattr(head, "encode", recorded)
    batch = training_batch((0,))
    for _ in range(2):
        model.bev_of_queue(batch["img"], batch["img_metas"])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [training for training, _, _ in calls] == [False, False, True] * 2
    assert [bev.requires_grad for _, bev, _ in calls] == [False, False, True] * 2
    # Without dropout and grid mask twice the same; each frame gets the BEV of the one before.
    for first, second in zip(calls[:2], calls[3:5]):
        assert torch.equal(first[1], second[1])
    assert calls[1][2] is calls[0][1]
    assert calls[2][2] is calls[1][1]


def test_modes_are_restored_when_the_history_fails(detector, monkeypatch):
    def fail(*_):
        raise RuntimeError("no image")

    modes = {name: module.training for name, module in detector.named_modules()}
    monkeypatch.setattr(detector, "encode", fail)
    with pytest.raises(RuntimeError, match="no image"):
        detector(return_loss=True, **training_batch((0,)))
    assert {name: module.training for name, module in detector.named_modules()} == modes
    assert torch.is_grad_enabled()


def test_the_history_gets_no_gradient(detector):
    batch = training_batch((0,))
    batch["img"].requires_grad_()
    losses = detector(return_loss=True, **batch)
    sum(losses.values()).backward()
    assert not batch["img"].grad[:, :-1].any()
    assert batch["img"].grad[:, -1].any()


def test_training_edits_no_input_and_repeats_itself(detector):
    batch = training_batch((0, 1), 3, {(1, 1)})
    before = snapshot(batch)
    first = detector(return_loss=True, **batch)
    assert equal(batch, before)
    second = detector(return_loss=True, **batch)
    assert equal(first, second)


def test_no_ground_truth_in_the_whole_batch(detector):
    batch = training_batch((0,))
    batch["gt_bboxes_3d"] = [LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9)]
    batch["gt_labels_3d"] = [torch.zeros(0, dtype=torch.long)]
    losses = detector(return_loss=True, **batch)
    assert losses["loss_bbox"].item() == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)


def test_groups_train_all_their_queries():
    model = build_detector(head=dict(group_detr=3))
    sum(model(return_loss=True, **training_batch((0,))).values()).backward()
    gradient = model.pts_bbox_head.query_embedding.weight.grad
    assert (gradient.abs().sum(dim=1) > 0).all()


def test_missing_and_unknown_targets_are_named(detector):
    batch = training_batch((0,))
    with pytest.raises(TypeError, match="gt_bboxes_ignore"):
        detector(return_loss=True, gt_bboxes_ignore=[], **batch)
    del batch["gt_labels_3d"]
    with pytest.raises(TypeError, match="gt_labels_3d"):
        detector(return_loss=True, **batch)


def test_train_step_sums_the_losses(detector):
    batch = training_batch((0,))
    step = detector.train_step(batch, optimizer=None)
    losses = detector(return_loss=True, **batch)
    torch.testing.assert_close(step["loss"], sum(losses.values()))
    assert step["num_samples"] == 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_checkpoints_change_no_gradient(dtype):
    """In backbone and encoder, with dropout and history, in either precision."""
    gradients = []
    for with_cp in (False, True):
        model = build_detector(dropout=0.3, with_cp=with_cp)
        model.autocast_dtype = dtype
        torch.manual_seed(7)
        sum(model(return_loss=True, **training_batch((0, 1))).values()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_grid_mask_is_for_training(training):
    torch.manual_seed(0)
    model = build_detector(use_grid_mask=True).train(training)
    plain = build_detector().train(training)
    np.random.seed(0)
    model.grid_mask.prob = 1.0
    img = images()[None]
    same = torch.equal(model.extract_feat(img)[0], plain.extract_feat(img)[0])
    assert same != training


def test_image_features_keep_samples_and_cameras_apart(detector):
    img = torch.stack([images(0), images(1)])
    levels = detector.eval().extract_feat(img)
    assert [tuple(level.shape) for level in levels] == [
        (2, CAMERAS, CHANNELS, 2, 4),
        (2, CAMERAS, CHANNELS, 1, 2),
    ]
    alone = detector.extract_feat(img[1:, 1:])
    torch.testing.assert_close(levels[0][1, 1], alone[0][0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_channels", [[32], [64, 32], [32, 64, 128]])
def test_a_neck_for_another_backbone_is_refused(in_channels):
    neck = dict(type="FPN", in_channels=in_channels, out_channels=CHANNELS, num_outs=3)
    detector = build_detector()
    detector.img_neck = build_neck(neck)
    with pytest.raises(ValueError, match=r"img_neck\.in_channels is \[.*backbone gives \[32, 64\]"):
        detector.extract_feat(images()[None])


# Images as bytes


MEAN, STD = [110.0, 120.0, 130.0], [40.0, 50.0, 60.0]


def as_bytes(img):
    """(..., H, W, 3) uint8 BGR of normal images (..., 3, H, W)."""
    return (img * 40 + 120).clamp(0, 255).byte().movedim(-3, -1)


def normalised(raw):
    """What the published pipeline makes of the bytes, without padding."""
    rgb = raw.flip(-1).float()
    return ((rgb - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, -3)


def test_uint8_images_equal_preprocessed_images(detector):
    preprocessor = dict(type="ImagePreprocessor", mean=MEAN, std=STD, to_rgb=True)
    of_bytes = build_detector(data_preprocessor=preprocessor)
    assert of_bytes.state_dict().keys() == detector.state_dict().keys()

    batch = training_batch((0, 1))
    raw = as_bytes(batch["img"])
    losses = of_bytes(return_loss=True, **dict(batch, img=raw))
    expected = detector(return_loss=True, **dict(batch, img=normalised(raw)))
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-4, atol=1e-5)

    for frame in (0, 1):
        batch = inference_batch((0,), frame)
        raw = as_bytes(batch["img"][0])
        with torch.no_grad():
            results = [
                model.eval()(return_loss=False, **dict(batch, img=[images]))
                for model, images in ((of_bytes, raw), (detector, normalised(raw)))
            ]
        assert_same_boxes(*results)


def test_uint8_images_need_a_preprocessor(detector):
    batch = training_batch((0,))
    with pytest.raises(ValueError, match="set model.data_preprocessor"):
        detector(return_loss=True, **dict(batch, img=as_bytes(batch["img"])))


# Testing


def test_results_have_the_published_form(detector):
    results = run_test(detector, (0, 1))
    assert len(results) == 2
    for result in results:
        assert set(result) == {"pts_bbox"}
        boxes = result["pts_bbox"]
        assert isinstance(boxes["boxes_3d"], LiDARInstance3DBoxes)
        number = len(boxes["scores_3d"])
        assert 0 < number <= 10
        assert boxes["boxes_3d"].tensor.shape == (number, 9)
        assert boxes["labels_3d"].shape == (number,)
        assert (boxes["scores_3d"].diff() <= 0).all()


def test_memory_changes_results_and_frames_are_chained(detector):
    run_test(detector, (0,), frame=0)
    with_memory = run_test(detector, (0,), frame=1)
    detector.reset_memory()
    assert not same_boxes(run_test(detector, (0,), frame=1), with_memory)


def test_test_frames_are_chained_like_the_frames_of_a_queue(detector):
    """The same two frames, as a stream with absolute poses and by hand with relative ones."""
    run_test(detector, (0,), frame=0)
    streamed = run_test(detector, (0,), frame=1)
    first, second = make_meta(0, 0), make_meta(0, 1)
    second["can_bus"][:3] -= first["can_bus"][:3]
    second["can_bus"][17] -= first["can_bus"][17]
    first["can_bus"][:3], first["can_bus"][17] = 0, 0
    head = detector.pts_bbox_head
    with torch.no_grad():
        prev_bev = head(detector.extract_feat(images(0, 0)[None]), [first], only_bev=True)
        outputs = head(detector.extract_feat(images(0, 1)[None]), [second], prev_bev)
    ((boxes, scores, labels),) = head.get_bboxes(outputs, [second])
    by_hand = [dict(pts_bbox=dict(boxes_3d=boxes, scores_3d=scores, labels_3d=labels))]
    assert_same_boxes(streamed, by_hand)


def test_new_scene_equals_fresh_model(detector):
    fresh = run_test(detector, (0,), frame=2, scene_tokens=["b"])
    detector.reset_memory()
    run_test(detector, (0,), frame=0, scene_tokens=["a"])
    run_test(detector, (0,), frame=1, scene_tokens=["a"])
    assert_same_boxes(run_test(detector, (0,), frame=2, scene_tokens=["b"]), fresh)


def test_two_streams_equal_single_streams(detector):
    """Stream 0 goes on, stream 1 changes its scene at frame 2."""
    tokens = [("a", "b"), ("a", "b"), ("a", "c")]
    together = [run_test(detector, (0, 1), t, scene_tokens=tokens[t]) for t in range(3)]
    for stream in range(2):
        detector.reset_memory()
        for t in range(3):
            alone = run_test(detector, (stream,), t, scene_tokens=[tokens[t][stream]])
            assert_same_boxes(together[t][stream : stream + 1], alone)


def test_without_video_test_mode_there_is_no_memory(detector):
    model = build_detector(video_test_mode=False)
    run_test(model, (0,), frame=0)
    after_another = run_test(model, (0,), frame=1)
    assert_same_boxes(after_another, run_test(detector, (0,), frame=1))


def test_testing_edits_no_input_and_repeats_itself(detector):
    detector.eval()
    batch = inference_batch((0, 1))
    before = snapshot(batch)
    with torch.no_grad():
        first = detector(return_loss=False, **batch)
        detector.reset_memory()
        second = detector(return_loss=False, **batch)
    assert equal(batch, before)
    assert_same_boxes(first, second)


def test_the_memory_keeps_no_gradient(detector):
    detector.eval()(return_loss=False, **inference_batch((0,)))
    prev_bev, _ = detector.memory.state.read([make_meta()])
    assert not prev_bev.requires_grad


def test_step_takes_and_returns_the_state(detector):
    """Two streams through one model, neither of which touches the other or the model's own memory."""
    expected = [run_test(detector, (0,), t) for t in range(3)]
    detector.reset_memory()
    states = [None, None]
    with torch.no_grad():
        for t in range(3):
            for stream in range(2):
                batch = inference_batch((0,), t)
                results, states[stream] = detector.step(
                    batch["img"][0], batch["img_metas"][0], states[stream]
                )
                assert_same_boxes(results, expected[t])
    assert not detector.memory.state.scenes


def test_images_with_a_nan_give_boxes_that_show_it(detector):
    batch = inference_batch((0,))
    detector.pts_bbox_head.bbox_coder.post_center_range = [-99.0] * 3 + [99.0] * 3
    with torch.no_grad():
        results, _ = detector.step(batch["img"][0] * float("nan"), batch["img_metas"][0])
    found = results[0]["pts_bbox"]
    assert len(found["scores_3d"]) > 0
    assert found["boxes_3d"].tensor.isnan().any(dim=1).all()


def test_step_runs_in_the_precision_of_the_model(mixed_precision):
    batch = inference_batch((0,))
    mixed_precision.eval()
    with torch.no_grad():
        _, state = mixed_precision.step(batch["img"][0], batch["img_metas"][0])
        mixed_precision(return_loss=False, **batch)
    (stepped,) = state.scenes.values()
    (tested,) = mixed_precision.memory.state.scenes.values()
    assert torch.equal(stepped.bevs, tested.bevs)


def test_a_smaller_last_batch_keeps_its_history(detector):
    run_test(detector, (0, 1), frame=0)
    after_two = run_test(detector, (1,), frame=1)
    detector.reset_memory()
    run_test(detector, (1,), frame=0)
    assert_same_boxes(after_two, run_test(detector, (1,), frame=1))


def test_an_older_frame_of_a_scene_is_rejected(detector):
    detector.eval()
    batches = [inference_batch((0,), frame) for frame in range(2)]
    for batch, timestamp in zip(batches, (2.0, 1.5)):
        batch["img_metas"][0][0]["timestamp"] = timestamp
    with torch.no_grad():
        detector(return_loss=False, **batches[0])
        with pytest.raises(ValueError, match="older than the previous frame"):
            detector(return_loss=False, **batches[1])
        detector.reset_memory()
        detector(return_loss=False, **batches[1])


def test_training_does_not_touch_the_memory(detector):
    run_test(detector, (0,), frame=0)
    expected = run_test(detector, (0,), frame=1)
    detector.reset_memory()
    run_test(detector, (0,), frame=0)
    detector.train()(return_loss=True, **training_batch((0,)))
    assert_same_boxes(run_test(detector, (0,), frame=1), expected)


def test_test_time_augmentation_is_refused(detector):
    batch = inference_batch((0,))
    with pytest.raises(ValueError, match="one augmentation"):
        detector(return_loss=False, img=batch["img"] * 2, img_metas=batch["img_metas"] * 2)


# Precision


@pytest.fixture
def mixed_precision():
    model = build_detector()
    model.autocast_dtype = torch.bfloat16
    return model


def test_bfloat16_losses_are_close_to_float32(detector, mixed_precision):
    batch = training_batch((0, 1))
    expected = detector(return_loss=True, **batch)
    losses = mixed_precision(return_loss=True, **batch)
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() != expected[key].item()  # it did run in mixed precision
        assert loss.item() == pytest.approx(expected[key].item(), rel=0.05)
    sum(losses.values()).backward()
    assert all(
        torch.isfinite(p.grad).all() for p in mixed_precision.parameters() if p.grad is not None
    )


def test_bfloat16_inference_gives_boxes(detector, mixed_precision):
    for frame in range(2):
        result = run_test(mixed_precision, (0,), frame)
        expected = run_test(detector, (0,), frame)
    boxes = result[0]["pts_bbox"]
    assert boxes["boxes_3d"].tensor.dtype == torch.float32
    torch.testing.assert_close(
        boxes["scores_3d"], expected[0]["pts_bbox"]["scores_3d"], rtol=0.1, atol=0.02
    )


def test_geometry_stays_in_float32_under_autocast(detector, mixed_precision, monkeypatch):
    """Visible queries, shifted reference points and the rotated BEV do not depend on autocast."""
    contexts = []
    make_context = PerceptionTransformer.frame_context

    def recorded(self, *args, **kwargs):
        contexts.append(make_context(self, *args, **kwargs))
        return contexts[-1]

    monkeypatch.setattr(PerceptionTransformer, "frame_context", recorded)
    batch = training_batch((0,), frames=2)
    detector(return_loss=True, **batch)
    mixed_precision(return_loss=True, **batch)
    plain, mixed = contexts[:2], contexts[2:]
    for ours, theirs in zip(plain, mixed):
        assert theirs.visible.reference_uv.dtype == torch.float32
        assert torch.equal(ours.visible.reference_uv, theirs.visible.reference_uv)
        assert torch.equal(ours.visible.query_index, theirs.visible.query_index)
        assert torch.equal(ours.reference_bev, theirs.reference_bev)


def test_losses_are_float32_under_autocast(mixed_precision, monkeypatch):
    seen = []
    encode = head_module.encode_boxes
    monkeypatch.setattr(
        head_module, "encode_boxes", lambda boxes: seen.append(boxes.dtype) or encode(boxes)
    )
    mixed_precision(return_loss=True, **training_batch((0,)))
    assert seen
    assert set(seen) == {torch.float32}


@pytest.fixture
def tf32_flags():
    """The modules that hold the two TF32 flags; the flags are as before afterwards."""
    holders = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [holder.allow_tf32 for holder in holders]
    yield holders
    for holder, flag in zip(holders, before):
        holder.allow_tf32 = flag


@pytest.mark.parametrize("flag", [True, False])
def test_global_precision_flags_are_untouched(detector, tf32_flags, flag):
    for holder in tf32_flags:
        holder.allow_tf32 = flag
    detector(return_loss=True, **training_batch((0,), frames=2))
    run_test(detector, (0,))
    assert [holder.allow_tf32 for holder in tf32_flags] == [flag, flag]


def test_pretrained_weights_are_read_onto_the_cpu(tmp_path, detector, monkeypatch):
    path = tmp_path / "resnet.pth"
    torch.save(detector.img_backbone.state_dict(), str(path))
    locations = []
    load = CheckpointLoader.load_checkpoint

    def spy(file, map_location=None, logger=None):
        locations.append(map_location)
        return load(file, map_location, logger)

    monkeypatch.setattr(CheckpointLoader, "load_checkpoint", spy)
    loaded = build_detector(seed=1, pretrained=dict(img=str(path)))
    assert locations == ["cpu"]
    weight = "layer4.0.conv1.weight"
    expected = detector.img_backbone.state_dict()[weight]
    assert torch.equal(loaded.img_backbone.state_dict()[weight], expected)
