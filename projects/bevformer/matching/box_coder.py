"""From class logits and box codes to boxes, without non-maximum suppression.

Shape legend: O object queries, K classes.
"""

import torch
from mmdet.core.bbox import BaseBBoxCoder
from mmdet.core.bbox.builder import BBOX_CODERS

from projects.bevformer.geometry.bev_grid import check_range
from projects.bevformer.geometry.boxes import decode_boxes


@BBOX_CODERS.register_module()
class NMSFreeCoder(BaseBBoxCoder):
    """Keeps the best (query, class) pairs whose centres lie in a range.

    Args:
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame: the detection
            range, which the head reads here.
        post_center_range: the same for the centres of boxes that are kept; None keeps all.
        max_num: pairs kept at most.
        score_threshold: pairs below it are dropped; None and 0 keep all.
        num_classes: K.
        voxel_size: accepted because published configs give it; unused there too.

    Raises:
        ValueError: `pc_range` or `post_center_range` is no range.

    Source: DETR3D (arXiv 2110.06922), section 3.2.
    """

    def __init__(
        self,
        pc_range,
        post_center_range=None,
        max_num=100,
        score_threshold=None,
        num_classes=10,
        voxel_size=None,
    ):
        check_range("pc_range", pc_range)
        if post_center_range is not None:
            check_range("post_center_range", post_center_range)
        self.pc_range = pc_range
        self.post_center_range = post_center_range
        self.max_num = max_num
        self.score_threshold = score_threshold
        self.num_classes = num_classes

    def encode(self):
        """Not needed: targets are encoded by geometry.boxes.encode_boxes."""
        raise NotImplementedError("NMSFreeCoder only decodes; see geometry.boxes.encode_boxes")

    def decode_single(self, cls_logits, codes):
        """Decode one sample.

        Args:
            cls_logits: (O, K).
            codes: (O, 10) box codes.

        Returns:
            dict(bboxes=(X, 9) old convention, gravity centre; scores=(X,), labels=(X,)), best first.
        """
        scores, index = cls_logits.sigmoid().flatten().topk(min(self.max_num, cls_logits.numel()))
        labels = index % self.num_classes
        queries = torch.div(index, self.num_classes, rounding_mode="floor")
        boxes = decode_boxes(codes[queries])
        keep = torch.ones_like(scores, dtype=torch.bool)
        if self.score_threshold:
            keep &= scores > self.score_threshold
        if self.post_center_range is not None:
            limits = boxes.new_tensor(self.post_center_range)
            centres = boxes[:, :3]
            keep &= (centres >= limits[:3]).all(dim=1) & (centres <= limits[3:]).all(dim=1)
        return dict(bboxes=boxes[keep], scores=scores[keep], labels=labels[keep])

    def decode(self, preds_dicts):
        """Decode the last decoder layer of a batch.

        Args:
            preds_dicts: all_cls_scores (X, B, O, K) and all_bbox_preds (X, B, O, 10).

        Returns:
            B dicts as `decode_single`.
        """
        logits = preds_dicts["all_cls_scores"][-1]
        codes = preds_dicts["all_bbox_preds"][-1]
        return [self.decode_single(*pair) for pair in zip(logits, codes)]
