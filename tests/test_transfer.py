import pytest
import torch

from projects.bevformer.transfer import constant, upload

CUDA = torch.device("cuda", 0)


@pytest.fixture
def fake_gpu(monkeypatch):
    """Record the calls of a copy to a GPU: [("pin",), ("to", device, non_blocking)]."""
    calls = []

    def pin_memory(tensor):
        calls.append(("pin",))
        return tensor

    def to(tensor, device, non_blocking=False):
        calls.append(("to", device, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    return calls


def test_upload_copies_from_pinned_memory_without_blocking(fake_gpu):
    upload(torch.ones(2), CUDA)
    assert fake_gpu == [("pin",), ("to", CUDA, True)]


def test_upload_to_the_cpu_is_the_tensor_itself():
    tensor = torch.ones(2)
    assert upload(tensor, torch.device("cpu")) is tensor


def test_constant_is_built_once_per_key():
    built = []

    def build(value):
        built.append(value)
        return torch.tensor([value])

    like = torch.ones(1)
    first = constant("test_transfer a", lambda: build(1.0), like)
    assert constant("test_transfer a", lambda: build(2.0), like) is first
    assert constant("test_transfer b", lambda: build(3.0), like).item() == 3.0
    assert built == [1.0, 3.0]


def test_constant_built_in_inference_mode_is_not_reused_in_training():
    weight = torch.ones(1, requires_grad=True)

    def table():
        return constant("test_transfer inference", lambda: torch.tensor([2.0]), weight)

    with torch.inference_mode():
        table()
    (weight * table()).sum().backward()  # an inference tensor cannot be saved for backward
    assert weight.grad.item() == 2.0


def test_constant_is_cached_per_device():
    on_meta = constant("test_transfer device", lambda: torch.ones(3), torch.ones(1, device="meta"))
    assert on_meta.device.type == "meta"
    on_cpu = constant("test_transfer device", lambda: torch.ones(3), torch.ones(1))
    assert on_cpu.tolist() == [1.0, 1.0, 1.0]
