import logging

import pytest
import torch
from dummy_task import DummyDataset, DummyDetector
from mmcv.parallel import collate
from mmcv.runner import LogBuffer
from tiny_bevformer import build_detector, training_batch

from projects.bevformer.engine import optimizer_hooks
from projects.bevformer.engine.optimizer_hooks import LossScalingOptimizerHook, OptimizerHook
from projects.bevformer.engine.precision import autocast_dtype, optimizer_hook, set_compute_format
from projects.bevformer.engine.training_model import TrainingModel, total_loss

LOGGER = logging.getLogger("test")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("fp16", "device", "expected"),
    [
        (None, CUDA, None),
        ({"loss_scale": 512.0}, CUDA, torch.float16),
        ({"dtype": "bfloat16"}, CUDA, torch.bfloat16),
        ({"loss_scale": 512.0}, CPU, torch.bfloat16),
    ],
)
def test_autocast_dtype(monkeypatch, fp16, device, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert autocast_dtype(fp16, device, LOGGER) is expected


def test_bfloat16_needs_hardware_support(monkeypatch):
    def emulated(including_emulation=True):
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulated)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match="Tesla T4.*fp16.dtype=float16"):
        autocast_dtype({"dtype": "bfloat16"}, CUDA, LOGGER)
    assert autocast_dtype({"dtype": "float16"}, CUDA, LOGGER) is torch.float16


@pytest.mark.parametrize("fp16", [{"dtype": "float8"}, {"lossscale": 1}, {"loss_scale": "x"}, True])
def test_autocast_dtype_refuses_unknown_values(fp16):
    with pytest.raises(ValueError, match="fp16"):
        autocast_dtype(fp16, CUDA, LOGGER)


def test_tf32_is_a_bool():
    with pytest.raises(ValueError, match="tf32 is 'yes': it must be True, False or None"):
        set_compute_format(torch.nn.Module(), {"tf32": "yes"}, CPU, LOGGER)


def test_config_selects_the_attention_backend_of_its_model_only():
    detector, other = build_detector(), build_detector()
    set_compute_format(detector, {"deform_attn_backend": "reference"}, CPU, LOGGER)
    set_compute_format(other, {}, CPU, LOGGER)

    def defaults(model):
        found = (getattr(m, "default_backend", "none") for m in model.modules())
        return {name for name in found if name != "none"}

    assert defaults(detector) == {"reference"}
    assert defaults(other) == {None}
    with pytest.raises(ValueError, match="deform_attn_backend='fast'.*lean, mmcv, reference"):
        set_compute_format(detector, {"deform_attn_backend": "fast"}, CPU, LOGGER)


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_last_changes_strides_only(channels_last):
    torch.manual_seed(0)
    detector = build_detector()
    batch = training_batch()
    expected = total_loss(detector(return_loss=True, **batch))[0]
    set_compute_format(detector, {"channels_last": channels_last}, CPU, LOGGER)
    kernels = [
        weight for weight in detector.parameters() if weight.ndim == 4 and weight.shape[-1] > 1
    ]
    assert kernels
    assert all(
        kernel.is_contiguous(memory_format=torch.channels_last) == channels_last
        for kernel in kernels
    )
    assert detector.autocast_dtype is None
    loss = total_loss(detector(return_loss=True, **batch))[0]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.fixture
def tf32_flags():
    """Function that returns the two TF32 flags; they are restored afterwards."""
    holders = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [holder.allow_tf32 for holder in holders]
    yield lambda: [holder.allow_tf32 for holder in holders]
    for holder, flag in zip(holders, before):
        holder.allow_tf32 = flag


def test_tf32_is_set_as_the_config_says(tf32_flags):
    detector = build_detector()
    for flag in (True, False, True):
        set_compute_format(detector, {"tf32": flag}, CPU, LOGGER)
        assert tf32_flags() == [flag, flag]
    set_compute_format(detector, {}, CPU, LOGGER)
    assert tf32_flags() == [True, True]


def test_optimizer_hook_scales_losses_for_float16_only():
    config = {"grad_clip": {"max_norm": 35}}
    plain = {"type": "OptimizerHook", **config}
    assert optimizer_hook(config, None, None) == plain
    assert optimizer_hook(config, {"loss_scale": 512.0}, torch.bfloat16) == plain
    hook = optimizer_hook(config, {"loss_scale": 512.0}, torch.float16)
    assert isinstance(hook, LossScalingOptimizerHook)
    assert hook.fixed_scale == 512.0
    assert hook.grad_clip == {"max_norm": 35}
    assert config == {"grad_clip": {"max_norm": 35}}
    with pytest.raises(ValueError, match="Fp16OptimizerHook"):
        optimizer_hook({"type": "Fp16OptimizerHook"}, None, None)
    with pytest.raises(ValueError, match="GradientCumulative"):
        optimizer_hook({"type": "GradientCumulativeOptimizerHook"}, {}, torch.float16)


class OneStepRunner:
    """What an optimizer hook sees of a runner."""

    skipped = False

    def __init__(self, model, device):
        self.model = TrainingModel(model, device)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.log_buffer = LogBuffer()
        self.meta = {}
        dataset = DummyDataset()
        batch = collate([dataset[0], dataset[1]], samples_per_gpu=2)
        self.outputs = self.model.train_step(batch)


def step_weights(device, dtype, hook):
    torch.manual_seed(0)
    detector = DummyDetector()
    detector.autocast_dtype = dtype
    runner = OneStepRunner(detector, device)
    hook.before_run(runner)
    hook.after_train_iter(runner)
    return runner, detector


def test_bfloat16_forward_and_float32_weights():
    runner, detector = step_weights(CPU, torch.bfloat16, OptimizerHook())
    assert detector.seen_dtypes == [torch.bfloat16]
    assert {p.grad.dtype for p in detector.parameters()} == {torch.float32}


class CountingScaler:
    """Stands in for a GradScaler, which is off without CUDA; counts how often its state is read."""

    def __init__(self):
        self.reads = 0

    def scale(self, loss):
        return loss

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer):
        optimizer.step()

    def update(self, new_scale):
        pass

    def state_dict(self):
        self.reads += 1
        return {"scale": 4.0}


def test_loss_scale_is_read_only_for_checkpoints(monkeypatch):
    scaler = CountingScaler()
    monkeypatch.setattr(optimizer_hooks, "make_grad_scaler", lambda: scaler)
    hook = LossScalingOptimizerHook()
    runner, _ = step_weights(CPU, None, hook)
    assert scaler.reads == 0
    assert runner.meta == {}
    assert hook.checkpoint_meta() == {"grad_scaler": {"scale": 4.0}}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss_scale", [512.0, "dynamic"])
def test_scaled_float16_step_is_near_the_float32_step(loss_scale):
    clip = {"max_norm": 0.5}
    device = torch.device("cuda", 0)
    _, exact = step_weights(device, None, OptimizerHook(grad_clip=clip))
    hook = LossScalingOptimizerHook(loss_scale, clip)
    runner, scaled = step_weights(device, torch.float16, hook)
    for a, b in zip(exact.parameters(), scaled.parameters()):
        assert torch.allclose(a, b, atol=2e-3)
    assert scaled.seen_dtypes == [torch.float16]
    runner.meta.update(hook.checkpoint_meta())
    assert runner.meta["grad_scaler"]["scale"] == (512.0 if loss_scale == 512.0 else 65536.0)
    resumed = LossScalingOptimizerHook("dynamic")
    runner.meta["grad_scaler"]["scale"] = 4.0
    resumed.before_run(runner)
    assert resumed.scaler.get_scale() == 4.0


def test_history_frames_do_not_keep_weights_from_learning():
    gradients = {}
    for dtype in (None, torch.bfloat16):
        detector = build_detector()
        detector.autocast_dtype = dtype
        loss, _ = total_loss(detector(return_loss=True, **training_batch()))
        loss.backward()
        gradients[dtype] = {n for n, p in detector.named_parameters() if p.grad is not None}
    assert len(gradients[None]) > 50
    assert gradients[torch.bfloat16] == gradients[None]
