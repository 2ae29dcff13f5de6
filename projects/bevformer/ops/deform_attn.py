"""Multi-scale deformable attention: one function, several backends.

Shape legend: V maps (e.g. batch x cameras), B batch, S keys (= sum of h * w over the levels),
M heads, C channels per head, Q queries, R rows (queries of all maps), L levels, P points.
"""

from projects.bevformer.ops import deform_attn_lean as lean
from projects.bevformer.ops import deform_attn_reference as reference
from projects.bevformer.ops import deform_attn_triton as triton
from projects.bevformer.ops.backends import choose_backend, register_backend

register_backend("reference", reference.attend, reference.why_not)
register_backend("lean", lean.attend, lean.why_not)
register_backend("triton", triton.attend, triton.why_not)


def multi_scale_deformable_attn(
    value, spatial_shapes, sampling_locations, attention_weights, backend=None
):
    """Sample the value maps at a few points per query and sum them with weights.

    Arguments and layout are those of mmcv's `multi_scale_deformable_attn_pytorch`.

    Args:
        value: (B, S, M, C) the maps of all levels, flattened row-major, one level after the other.
        spatial_shapes: L pairs (h, w); a list of ints, or an (L, 2) tensor.
        sampling_locations: (B, Q, M, L, P, 2) (x, y) as fractions of width and height; samples
            outside the map read zeros. Its dtype is the one in which sampling runs.
        attention_weights: (B, Q, M, L, P) weights, normalised by the caller.
        backend: name of a backend; None for the choice of `backends.choose_backend`.

    Returns:
        (B, Q, M * C) in the dtype of `sampling_locations`.

    Raises:
        ValueError: the shapes do not fit each other, or there is no such backend here.

    Source: Deformable DETR (arXiv 2010.04159), equation 3. Pixel model `align_corners=False`.
    """
    batch, queries = sampling_locations.shape[:2]
    if batch != value.shape[0]:
        raise _misfit("sampling_locations", sampling_locations, "value", value)
    if attention_weights.shape != sampling_locations.shape[:-1]:
        raise _misfit(
            "attention_weights", attention_weights, "sampling_locations", sampling_locations
        )
    output = packed_multi_scale_deformable_attn(
        value,
        spatial_shapes,
        sampling_locations.flatten(0, 1),
        attention_weights.flatten(0, 1),
        (queries,) * batch,
        backend,
    )
    return output.reshape(batch, queries, output.shape[-1])


def packed_multi_scale_deformable_attn(
    value, spatial_shapes, sampling_locations, attention_weights, rows_per_map, backend=None
):
    """The same for maps with different numbers of queries, without padding.

    Args:
        value: (V, S, M, C).
        spatial_shapes: L pairs (h, w); a list of ints, or an (L, 2) tensor.
        sampling_locations: (R, M, L, P, 2), the rows of map 0 first, then those of map 1, ...
        attention_weights: (R, M, L, P).
        rows_per_map: V ints on the host that sum to R; a map may have none.
        backend: name of a backend; None for the choice of `backends.choose_backend`.

    Returns:
        (R, M * C) in the dtype of `sampling_locations`.

    Raises:
        ValueError: the shapes do not fit each other, or there is no such backend here.
    """
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    rows_per_map = tuple(rows_per_map)
    maps, keys, heads, _ = value.shape
    if keys != sum(h * w for h, w in shapes):
        raise ValueError(f"value has {keys} keys, but spatial_shapes {shapes} hold another number")
    if sampling_locations.shape[1:3] != (heads, len(shapes)):
        raise _misfit(
            "sampling_locations", sampling_locations, f"{len(shapes)} levels and value", value
        )
    if attention_weights.shape != sampling_locations.shape[:-1]:
        raise _misfit(
            "attention_weights", attention_weights, "sampling_locations", sampling_locations
        )
    if len(rows_per_map) != maps or sum(rows_per_map) != sampling_locations.shape[0]:
        raise ValueError(
            f"rows_per_map {rows_per_map} does not share {sampling_locations.shape[0]} rows among "
            f"{maps} maps"
        )
    attend = choose_backend(backend, value, sampling_locations)
    return attend(value, shapes, sampling_locations, attention_weights, rows_per_map)


def _misfit(name, tensor, other_name, other):
    return ValueError(
        f"{name} {tuple(tensor.shape)} does not fit {other_name} {tuple(other.shape)}"
    )
