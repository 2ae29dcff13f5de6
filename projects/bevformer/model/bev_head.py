"""Interface of a head on the BEV other than detection."""

from mmcv.runner import BaseModule


class BEVHead(BaseModule):
    """Interface of the entries of `BEVFormer.heads`; a head may also just have these methods.

    Register it in mmdet's HEADS. `name` and `weight` of its config are the detector's.

    Shape legend: B batch, Q BEV queries (= Hb * Wb, row-major), C channels.
    """

    def forward(self, bev):
        """(B, Q, C) BEV features -> the outputs that `loss` and `results` take."""

    def loss(self, outputs, metas, targets):
        """Losses of a batch.

        Args:
            outputs: what `forward` returned.
            metas: B metas of the current frame.
            targets: dict of the rest of the batch, without images and metas.

        Returns:
            dict of tensors; those with "loss" in their name are added up, the others only logged.
        """

    def results(self, outputs, metas):
        """B results on the CPU that pickle; the evaluator of the head's name receives them."""
