"""mmcv's compiled operator as a backend of ops: deformable attention "mmcv".

It needs an mmcv-full that was compiled for CUDA, and computes in float32. It has not been run here.
"""

import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

from projects.bevformer.compat import mmcv_has_cuda_operators
from projects.bevformer.ops import register_backend
from projects.bevformer.transfer import constant


def unsupported_reason(value, locations):
    """None, or why these tensors are not supported."""
    if not mmcv_has_cuda_operators():
        return "this mmcv-full was compiled without CUDA: install one that was compiled with it"
    if not value.is_cuda:
        return f"mmcv's operator runs on CUDA devices, and the value is on {value.device}"
    if locations.dtype != torch.float32:
        return f"mmcv's operator takes sampling locations in float32, not {locations.dtype}"
    return None


def attend(value, shapes, locations, weights, rows_per_map):
    """`ops.packed_multi_scale_deformable_attn` with checked arguments."""
    value = value.float().contiguous()
    shapes = tuple(map(tuple, shapes))
    level_shapes = constant(("level_shapes", shapes), lambda: torch.tensor(shapes), value)
    level_starts = constant(("level_starts", shapes), lambda: _starts(shapes), value)

    def attend_evenly(value, locations, weights):
        maps, queries = value.shape[0], locations.shape[0] // value.shape[0]
        output = MultiScaleDeformableAttnFunction.apply(
            value,
            level_shapes,
            level_starts,
            locations.reshape(maps, queries, *locations.shape[1:]).contiguous(),
            weights.float().reshape(maps, queries, *weights.shape[1:]).contiguous(),
            maps,  # images at a time; it has to divide their number
        )
        return output.flatten(0, 1)

    if len(set(rows_per_map)) == 1 and rows_per_map[0] > 0:
        return attend_evenly(value, locations, weights)
    per_map = zip(value.split(1), locations.split(rows_per_map), weights.split(rows_per_map))
    outputs = [attend_evenly(*one) for one in per_map if one[1].shape[0] > 0]
    return torch.cat([locations.new_empty(0, value.shape[2] * value.shape[3]), *outputs])


def _starts(shapes):
    """(L,) long, the first key of each level."""
    sizes = torch.tensor(shapes).prod(dim=1)
    return sizes.cumsum(0) - sizes


register_backend("mmcv", attend, unsupported_reason)
