"""What a head on the BEV beside detection has to offer."""

from mmcv.runner import BaseModule


class BEVHead(BaseModule):
    """Interface of the entries of `BEVFormer.heads`; a head may derive from it or just look like it.

    Register it in mmdet's HEADS. `name` and `weight` of its config are the detector's.

    Shape legend: B batch, Q BEV queries (= Hb * Wb, row-major), C channels.
    """

    def forward(self, bev):
        """(B, Q, C) BEV features -> whatever `loss` and `results` take."""

    def loss(self, outputs, metas, targets):
        """Losses of a batch.

        Args:
            outputs: what `forward` returned.
            metas: B metas of the current frame.
            targets: dict of what the batch holds besides images and metas, by its key.

        Returns:
            dict of tensors; those with "loss" in their name are added up, the others only logged.
        """

    def results(self, outputs, metas):
        """B results on the CPU that pickle; the evaluator of the head's name receives them."""
