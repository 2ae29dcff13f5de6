"""The last step of a pipeline."""

from mmdet3d.datasets.builder import PIPELINES
from mmdet3d.datasets.pipelines import Collect3D

META_KEYS = (
    "filename",
    "ori_shape",
    "img_shape",
    "lidar2img",
    "lidar2cam",
    "cam2img",
    "pad_shape",
    "scale_factor",
    "flip",
    "box_mode_3d",
    "box_type_3d",
    "img_norm_cfg",
    "sample_idx",
    "prev_idx",
    "next_idx",
    "scene_token",
    "can_bus",
    "pts_filename",
)


@PIPELINES.register_module()
class CustomCollect3D(Collect3D):
    """mmdet3d's Collect3D with the meta keys that a temporal camera model reads.

    Args:
        keys: what to collect besides `img_metas`.
        meta_keys: what to collect into `img_metas`, where the frame has it.
    """

    def __init__(self, keys, meta_keys=META_KEYS):
        super().__init__(keys, meta_keys)
