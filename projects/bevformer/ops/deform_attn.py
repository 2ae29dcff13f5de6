"""Multi-scale deformable attention: one function, several backends.

Shape legend: V maps (e.g. batch x cameras), B batch, S keys (= sum of h * w over the levels),
M heads, C channels per head, Q queries, R rows (queries of all maps), L levels, P points.
"""

from __future__ import annotations

from typing import Sequence, Union

from torch import Tensor

from projects.bevformer.ops import deform_attn_lean as lean
from projects.bevformer.ops import deform_attn_reference as reference
from projects.bevformer.ops import deform_attn_triton as triton
from projects.bevformer.ops.backends import LevelShapes, register_backend, select_backend

register_backend("reference", reference.attend, reference.unsupported_reason)
register_backend("lean", lean.attend, lean.unsupported_reason, repeatable=True)
register_backend("triton", triton.attend, triton.unsupported_reason)

SpatialShapes = Union[LevelShapes, Tensor]


def multi_scale_deformable_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
    default_backend: str | None = None,
) -> Tensor:
    """Sample the value maps at a few points per query and sum them with weights.

    Arguments and layout are those of mmcv's `multi_scale_deformable_attn_pytorch`.

    Args:
        value: (B, S, M, C) the maps of all levels, flattened row-major, one level after the other.
        spatial_shapes: L pairs (h, w), or an (L, 2) tensor.
        sampling_locations: (B, Q, M, L, P, 2) (x, y) as fractions of width and height; samples
            outside the map read zeros. Sampling runs in its dtype.
        attention_weights: (B, Q, M, L, P) weights, normalised by the caller.
        backend: name of a backend; None to select one as described in ops/backends.py.
        default_backend: the calling model's default, which BEVFORMER_MSDA overrides.

    Returns:
        (B, Q, M * C) in the dtype of `sampling_locations`.

    Raises:
        ValueError: the shapes do not fit each other, or the backend is unknown or does not support
            these tensors.

    Source: Deformable DETR (arXiv 2010.04159), equation 3. Pixel model `align_corners=False`.
    """
    batch, queries = sampling_locations.shape[:2]
    if batch != value.shape[0]:
        raise _misfit("sampling_locations", sampling_locations, "value", value)
    shapes = _checked_shapes(value, spatial_shapes, sampling_locations, attention_weights, 2)
    locations, weights = sampling_locations.flatten(0, 1), attention_weights.flatten(0, 1)
    attend = select_backend(value, locations, backend, default_backend).attend
    output = attend(value, shapes, locations, weights, (queries,) * batch)
    return output.reshape(batch, queries, output.shape[-1])


def packed_multi_scale_deformable_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    rows_per_map: Sequence[int],
    backend: str | None = None,
    default_backend: str | None = None,
) -> Tensor:
    """The same for maps with different numbers of queries, without padding.

    Args:
        value: (V, S, M, C).
        spatial_shapes: L pairs (h, w), or an (L, 2) tensor.
        sampling_locations: (R, M, L, P, 2), the rows of map 0 first, then those of map 1, ...
        attention_weights: (R, M, L, P).
        rows_per_map: V numbers that sum to R; a map may have none.
        backend, default_backend: see `multi_scale_deformable_attn`.

    Returns:
        (R, M * C) in the dtype of `sampling_locations`.

    Raises:
        ValueError: as `multi_scale_deformable_attn`.
    """
    shapes = _checked_shapes(value, spatial_shapes, sampling_locations, attention_weights, 1)
    rows_per_map = tuple(rows_per_map)
    if len(rows_per_map) != value.shape[0] or sum(rows_per_map) != sampling_locations.shape[0]:
        raise ValueError(
            f"rows_per_map {rows_per_map} does not divide {sampling_locations.shape[0]} rows among "
            f"{value.shape[0]} maps"
        )
    attend = select_backend(value, sampling_locations, backend, default_backend).attend
    return attend(value, shapes, sampling_locations, attention_weights, rows_per_map)


def _checked_shapes(
    value: Tensor, spatial_shapes: SpatialShapes, locations: Tensor, weights: Tensor, lead: int
) -> LevelShapes:
    """The shapes as ints, if all arguments fit; `lead` dimensions come before the heads."""
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    _, keys, heads, _ = value.shape
    if keys != sum(h * w for h, w in shapes):
        raise ValueError(f"value has {keys} keys, which is not the area of spatial_shapes {shapes}")
    if locations.shape[lead : lead + 2] != (heads, len(shapes)):
        raise _misfit("sampling_locations", locations, f"{len(shapes)} levels and value", value)
    if weights.shape != locations.shape[:-1]:
        raise _misfit("attention_weights", weights, "sampling_locations", locations)
    return shapes


def _misfit(name: str, tensor: Tensor, other_name: str, other: Tensor) -> ValueError:
    return ValueError(
        f"{name} {tuple(tensor.shape)} does not fit {other_name} {tuple(other.shape)}"
    )
