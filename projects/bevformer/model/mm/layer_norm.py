"""LayerNorm that mixed precision cannot break."""

from torch import nn


class WeightPrecisionLayerNorm(nn.LayerNorm):
    """LayerNorm in the precision of its weights, whatever the autocast state.

    CUDA's autocast does so by itself; a CPU's does not, and torch 1.10 there refuses bfloat16 inputs
    beside float32 weights.
    """

    def forward(self, x):
        """(..., C) -> (..., C) in the dtype of the weights."""
        return super().forward(x.to(self.weight.dtype))
