# The published BEVFormer v2 "t8": t1 with the seven key frames before. Published: NDS 55.3, mAP 46.0 on
# nuScenes val.
_base_ = ["./bevformerv2_r50_t1_24ep.py"]
frames = tuple(range(-7, 1))
model = dict(pts_bbox_head=dict(transformer=dict(inter_channels=2 * {{_base_.embed_dims}})))
