import torch

from projects.bevformer.geometry.precision import full_precision


def test_the_dtype_is_one_that_every_device_has(monkeypatch):
    """torch 1.10 checks it although autocast is switched off, and V100 and T4 lack bfloat16."""
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda **options: asked.append(options))
    for device in ("cuda", "cpu"):
        full_precision(torch.device(device))
    assert asked == [
        dict(device_type="cuda", dtype=torch.float16, enabled=False),
        dict(device_type="cpu", dtype=torch.bfloat16, enabled=False),
    ]


def test_autocast_is_off_inside():
    matrix = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (matrix @ matrix).dtype == torch.bfloat16
        with full_precision(matrix.device):
            assert (matrix @ matrix).dtype == torch.float32


def test_the_meta_device_has_no_autocast():
    with full_precision(torch.device("meta")):
        pass
