"""Tensor functions without parameters: no mm* import."""

from .color import distort_colors
from .deform_attn import multi_scale_deformable_attn

__all__ = ["distort_colors", "multi_scale_deformable_attn"]
