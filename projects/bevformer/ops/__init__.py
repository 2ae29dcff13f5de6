"""Tensor functions without parameters: no mm* import."""

from .deform_attn import multi_scale_deformable_attn

__all__ = ["multi_scale_deformable_attn"]
