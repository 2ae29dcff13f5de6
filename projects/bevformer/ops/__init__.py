"""Tensor functions without parameters: no mm* import."""

from .backends import known_backends, register_backend, set_default_backend
from .color import distort_colors
from .deform_attn import multi_scale_deformable_attn, packed_multi_scale_deformable_attn

__all__ = [
    "distort_colors",
    "known_backends",
    "multi_scale_deformable_attn",
    "packed_multi_scale_deformable_attn",
    "register_backend",
    "set_default_backend",
]
