"""Ways to save memory, as config options: what the recipes of the same names switch on."""

_LAYERS = {"model.pts_bbox_head.transformer.encoder.with_cp": True}
_BLOCKS = {"model.img_backbone.with_cp": True}
BF16 = {"fp16": {"dtype": "bfloat16"}}

PRESETS = {
    "default": {},
    "low_memory": _LAYERS,  # configs/bevformer/bevformer_low_memory.py
    "low_memory_backbone": {**_LAYERS, **_BLOCKS},
    "bf16": {**_LAYERS, **_BLOCKS, **BF16},  # configs/bevformer/bevformer_bf16.py
}
