"""Which annotated objects the network is trained on."""

import numpy as np
from mmdet3d.datasets.builder import PIPELINES

from projects.bevformer.datasets.pipelines.step import Step


@PIPELINES.register_module()
class FilterObjectsByRange(Step):
    """Keep the objects whose centre lies in the range seen from above.

    Arguments and results are those of mmdet3d's ObjectRangeFilter, which needs `np.bool`; NumPy 1.24 to
    1.26 do not have it.

    Args:
        point_cloud_range: x_min, y_min, z_min, x_max, y_max, z_max; metres, lidar frame.
    """

    def __init__(self, point_cloud_range):
        self.point_cloud_range = np.array(point_cloud_range, dtype=np.float32)

    def __call__(self, results):
        """Filter `gt_bboxes_3d` and `gt_labels_3d`; yaw is brought to (-pi, pi)."""
        inside = results["gt_bboxes_3d"].in_range_bev(self.point_cloud_range[[0, 1, 3, 4]])
        boxes = results["gt_bboxes_3d"][inside]
        boxes.limit_yaw(offset=0.5, period=2 * np.pi)
        results["gt_bboxes_3d"] = boxes
        results["gt_labels_3d"] = results["gt_labels_3d"][inside.numpy()]
        return results
