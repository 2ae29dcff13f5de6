"""Time of an operator on a GPU: a roofline of memory traffic and arithmetic, so real times are longer."""

from torch.utils.flop_counter import flop_registry

# Bytes a second of the memory (what a copy reaches, not the data sheet) and of the L2, operations a
# second, the least time of a kernel in seconds.
H200 = dict(
    hbm=3.65e12, l2=5.2e12, tf32=330e12, bf16=560e12, fp32=50e12, conv_share=0.75, issue=9.2e11,
    least=2.5e-6,
)  # fmt: skip
H100 = dict(H200, hbm=2.55e12, l2=4.8e12)
A100 = dict(
    hbm=1.5e12, l2=3.5e12, tf32=110e12, bf16=220e12, fp32=17e12, conv_share=0.75, issue=6.1e11,
    least=3e-6,
)  # fmt: skip
CHIPS = {"h100": H100, "h200": H200, "a100": A100}
_FILLS = ("fill_", "zero_", "zeros", "full", "ones", "zeros_like", "new_zeros", "arange")


def estimate(func, name, args, tensors, outs, chip):
    """Estimate one operator.

    Args:
        func, name, args: of the operator.
        tensors, outs: its tensors on the GPU, in and out.
        chip: one of CHIPS.

    Returns:
        (seconds, kind, operations, bytes); the kind is None to take it from the call site.
    """
    moved = _size(tensors) + _size(outs)
    half = any(t.dtype.itemsize == 2 for t in tensors if t.dim() > 1)
    rate = chip["bf16"] if half else chip["tf32"]
    base = name.split("::")[1].split(".")[0]
    if "deform_conv2d" in base:
        return _deform_conv(args, rate, chip, backward="backward" in base)
    if base in ("_embedding_bag", "_embedding_bag_forward_only"):
        table, entries = args[0], args[1].numel()
        row = table.shape[1] * table.element_size()
        seconds = max(entries * row / chip["l2"], entries * 16 / chip["issue"])
        seconds = max(seconds + entries * 12 / chip["hbm"], chip["least"])
        return seconds, "msda", 2 * entries * table.shape[1], entries * (row + 12)
    if base == "_embedding_bag_per_sample_weights_backward":
        entries = args[2].numel()
        row = args[1].shape[1] * 4
        seconds = max(entries * 2 * row / chip["l2"], entries * 40 / chip["issue"], chip["least"])
        return seconds, "msda", 0, entries * 2 * row
    if base == "sort":
        entries = args[0].numel()
        return max(entries * 24 * 5 / chip["hbm"], 20e-6), None, 0, entries * 120
    flops = _flops(func, args, outs)
    if base.startswith("convolution"):
        seconds = max(moved / chip["hbm"], flops / rate / chip["conv_share"], chip["least"])
        return seconds, "conv", flops, moved
    if flops:
        return max(moved / chip["hbm"], flops / rate, chip["least"]), "gemm", flops, moved
    if base in ("index_select", "gather", "embedding", "index"):
        per_entry = 8 if outs and outs[0].dim() == 1 else 2
        moved = _size(outs) * per_entry + _size([t for t in tensors if not t.is_floating_point()])
    if base in _FILLS:
        moved = _size(outs)
    kind = "images" if outs and outs[0].dim() == 4 else "other"
    return max(moved / chip["hbm"], chip["least"]), kind, 0, moved


def _size(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def _flops(func, args, outs):
    count = flop_registry.get(func._overloadpacket)
    if count is None:
        return 0
    for out in (outs[0] if len(outs) == 1 else outs, outs):
        try:
            return count(*args, out_val=out)
        except Exception:  # noqa: BLE001, S112: a counter that does not know this form
            continue
    return 0


def _deform_conv(args, rate, chip, backward):
    """torchvision's deformable convolution in float32."""
    images, weight, offset = args[1:4] if backward else args[:3]
    pixels = images.shape[0] * offset.shape[2] * offset.shape[3]
    columns = pixels * images.shape[1] * weight.shape[2] * weight.shape[3]
    gemm = 2 * columns * weight.shape[0]
    # Forward: columns zeroed, written, read by the product. Backward: their gradient is written and
    # read twice, the columns once more, with atomic additions.
    passes, gemms, instructions = (7, 2, 4.0) if backward else (3, 1, 1.6)
    seconds = columns * 4 * passes / chip["hbm"] + gemm * gemms / rate / chip["conv_share"]
    seconds += columns * instructions / chip["issue"]
    return seconds, "dcn", gemm * gemms, columns * 4 * passes
