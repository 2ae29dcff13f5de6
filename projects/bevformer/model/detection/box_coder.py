"""From class logits and box codes to boxes, without non-maximum suppression.

Shape legend: B batch, O object queries, K classes, X candidates.
"""

import torch
from mmdet.core.bbox import BaseBBoxCoder
from mmdet.core.bbox.builder import BBOX_CODERS

from projects.bevformer.geometry.bev_grid import check_range
from projects.bevformer.geometry.boxes import decode_boxes
from projects.bevformer.published import published


@BBOX_CODERS.register_module()
@published(ignores=("voxel_size",))
class NMSFreeCoder(BaseBBoxCoder):
    """Keeps the best (query, class) pairs whose centres lie in a range.

    Args:
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame: the detection
            range, which the head reads here.
        post_center_range: the same for the centres of boxes that are kept; None keeps all.
        max_num: pairs kept at most.
        score_threshold: pairs below it are dropped; None and 0 keep all.
        num_classes: K.

    Raises:
        ValueError: `pc_range` or `post_center_range` is not a range.

    Source: DETR3D (arXiv 2110.06922), section 3.2.
    """

    def __init__(
        self,
        pc_range,
        post_center_range=None,
        max_num=100,
        score_threshold=None,
        num_classes=10,
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
            dict(bboxes=(X, 9) old convention, gravity centre; scores=(X,), labels=(X,)) on the CPU,
            best first.
        """
        (candidates,) = self._candidates(cls_logits[None], codes[None]).cpu()
        return self._boxes(candidates)

    def decode(self, preds_dicts):
        """Decode the last decoder layer of a batch, with one host-device sync.

        Args:
            preds_dicts: all_cls_scores (layers, B, O, K) and all_bbox_preds (layers, B, O, 10).

        Returns:
            B dicts as `decode_single`.
        """
        logits = preds_dicts["all_cls_scores"][-1]
        codes = preds_dicts["all_bbox_preds"][-1]
        return [self._boxes(candidates) for candidates in self._candidates(logits, codes).cpu()]

    def _candidates(self, cls_logits, codes):
        """(B, O, K) and (B, O, 10) -> (B, X, 12): score, label and code of the best pairs."""
        probabilities = cls_logits.sigmoid().flatten(1)
        scores, index = probabilities.topk(min(self.max_num, probabilities.shape[1]))
        labels = index % self.num_classes
        queries = torch.div(index, self.num_classes, rounding_mode="floor")
        best_codes = codes.gather(1, queries[..., None].expand(-1, -1, codes.shape[-1]))
        columns = (scores[..., None], labels[..., None].to(scores.dtype), best_codes)
        return torch.cat(columns, dim=-1)

    def _boxes(self, candidates):
        """(X, 12) candidates on the CPU -> the dict of those that are kept."""
        scores, labels = candidates[:, 0], candidates[:, 1].long()
        boxes = decode_boxes(candidates[:, 2:])
        keep = torch.ones_like(scores, dtype=torch.bool)
        # Boxes with a NaN are kept: whoever reads the boxes names them.
        if self.score_threshold:
            keep &= ~(scores <= self.score_threshold)
        if self.post_center_range is not None:
            limits = boxes.new_tensor(self.post_center_range)
            centres = boxes[:, :3]
            keep &= ~((centres < limits[:3]) | (centres > limits[3:])).any(dim=1)
        return dict(bboxes=boxes[keep], scores=scores[keep], labels=labels[keep])
