"""Tensor functions without parameters: no mm* import."""

from projects.bevformer.ops.backends import (
    Backend,
    known_backends,
    register_backend,
    set_default_backend,
)
from projects.bevformer.ops.color import distort_colors
from projects.bevformer.ops.deform_attn import (
    multi_scale_deformable_attn,
    packed_multi_scale_deformable_attn,
)

__all__ = [
    "Backend",
    "distort_colors",
    "known_backends",
    "multi_scale_deformable_attn",
    "packed_multi_scale_deformable_attn",
    "register_backend",
    "set_default_backend",
]
