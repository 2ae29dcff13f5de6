# The default recipe in less memory: the encoder recomputes each layer in the backward pass.
# Less still, for more time: --cfg-options model.img_backbone.with_cp=True (docs/performance.md)
_base_ = ["../config.py"]
model = dict(pts_bbox_head=dict(transformer=dict(encoder=dict(with_cp=True))))
