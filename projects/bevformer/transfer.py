"""Copies from the host to the device that runs the model."""


def upload(tensor, device):
    """Copy a CPU tensor to `device` without blocking the host.

    A non-blocking copy to a GPU is only asynchronous from pinned memory; PyTorch caches pinned
    blocks and keeps one alive until the copy that reads it is done.

    Args:
        tensor: on the CPU, pinned or not; a tensor already on `device` is returned as it is.
        device: torch.device.

    Returns:
        The tensor on `device`.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
