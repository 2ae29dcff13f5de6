import torch

from projects.bevformer.geometry.precision import full_precision


def test_dtype_is_supported_on_every_device(monkeypatch):
    """torch 1.10 checks it even though autocast is disabled, and V100 and T4 lack bfloat16."""
    calls = []
    monkeypatch.setattr(torch, "autocast", lambda **options: calls.append(options))
    for device in ("cuda", "cpu"):
        full_precision(torch.device(device))
    assert calls == [
        dict(device_type="cuda", dtype=torch.float16, enabled=False),
        dict(device_type="cpu", dtype=torch.bfloat16, enabled=False),
    ]


def test_autocast_is_off_inside():
    matrix = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (matrix @ matrix).dtype == torch.bfloat16
        with full_precision(matrix.device):
            assert (matrix @ matrix).dtype == torch.float32


def test_meta_device_is_supported():
    with full_precision(torch.device("meta")):
        pass
