"""Modules of published configs that this project replaces: same parameters, same numbers."""

from projects.bevformer import compat

_SAME_NAME = {
    # explicit arguments instead of an interpreted operation_order
    "DetrTransformerDecoderLayer": "BEVFormerDecoderLayer",
    # no compiled CUDA operator needed
    "FocalLoss": "TorchFocalLoss",
    # a plain batch norm on CPUs, where PyTorch has no SyncBN
    "SyncBN": "SyncBNOnGPU",
    # no activations kept while frozen
    "BN": "LeanBN2d",
    "BN2d": "LeanBN2d",
}


def replace_type(cfg):
    """The config of one module with its type replaced; see `published.translate`.

    - mmcv's DCNv2 becomes torchvision's where mmcv's cannot run on a GPU;
    - `with_cp` of a ResNet keeps less, in a way that works with DistributedDataParallel;
    - the others: see `_SAME_NAME`.

    Args:
        cfg: dict with `type`; modified and returned.
    """
    name = cfg["type"]
    if name == "DCNv2" and not compat.mmcv_has_cuda_operators():
        cfg["type"] = "TorchvisionDCNv2"
    elif name == "ResNet" and cfg.get("with_cp"):
        cfg.update(type="CheckpointedResNet", with_cp=False)
    elif name in _SAME_NAME:
        cfg["type"] = _SAME_NAME[name]
    return cfg
