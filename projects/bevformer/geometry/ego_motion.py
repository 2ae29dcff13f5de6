"""How the ego vehicle's motion moves the previous frame's BEV features.

Shape legend: B batch, Q BEV queries (= Hb * Wb), C channels.
"""

import torch
from torchvision.transforms.functional import InterpolationMode, rotate

from projects.bevformer.geometry.precision import full_precision
from projects.bevformer.transfer import upload


def bev_shift(delta_xy_global, ego_yaw_rad, pc_range):
    """Ego translation since the previous frame as a fraction of the BEV grid.

    The lidar frame's y axis points along the ego heading and its x axis to the right of it, so a
    displacement of length L at angle a in the global frame is L * (sin(yaw - a), cos(yaw - a)) in it.
    The ego-to-lidar lever arm is left out, as in the original.

    Args:
        delta_xy_global: (B, 2) metres, global axes: this frame's ego position minus the previous.
        ego_yaw_rad: (B,) absolute ego yaw in the global frame.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.

    Returns:
        (B, 2) float32 (x, y) to add to reference points given as fractions of the grid.

    Source: BEVFormer (arXiv 2203.17270), section 3.4.
    """
    x_min, y_min, _, x_max, y_max, _ = pc_range
    dx, dy = delta_xy_global.unbind(dim=-1)
    length = torch.sqrt(dx**2 + dy**2)
    angle = ego_yaw_rad - torch.atan2(dy, dx)
    shift = torch.stack(
        (length * torch.sin(angle) / (x_max - x_min), length * torch.cos(angle) / (y_max - y_min)),
        dim=-1,
    )
    return shift.float()


def rotate_bev(bev, delta_yaw_deg, bev_hw, center=None):
    """Turn each sample's BEV features by the ego rotation since the previous frame.

    Args:
        bev: (B, Q, C) previous BEV features.
        delta_yaw_deg: B floats, the ego's turn in degrees, counter-clockwise seen from above; what
            stands still turns the other way on the grid.
        bev_hw: rows and columns of the grid.
        center: (column, row) to turn about; None is the middle of the grid, where the lidar is.
            The official recipes say (100, 100) whatever the grid.

    Returns:
        (B, Q, C) features; cells that turn in from outside are zero. The input is not edited.

    Raises:
        ValueError: Q is not Hb * Wb, or the number of angles is not B.

    Source: BEVFormer (arXiv 2203.17270), section 3.4; nearest neighbour as in the original.
    """
    bev_h, bev_w = bev_hw
    if bev.shape[1] != bev_h * bev_w or len(delta_yaw_deg) != bev.shape[0]:
        raise ValueError(
            f"bev {tuple(bev.shape)} does not fit a {bev_h}x{bev_w} grid and {len(delta_yaw_deg)} angles"
        )
    center = None if center is None else [float(c) for c in center]
    # A map of cell numbers is turned on the CPU, where the angles are; the features are only gathered.
    # Cells are numbered from 1: the rotation fills in zeros.
    numbers = torch.arange(1.0, bev_h * bev_w + 1).reshape(1, bev_h, bev_w)
    # torchvision computes the source cells by a matrix product: in half precision it is off by cells.
    with full_precision(numbers.device):
        turned = [
            rotate(numbers, float(angle), interpolation=InterpolationMode.NEAREST, center=center)
            for angle in delta_yaw_deg
        ]
    source = upload(torch.stack(turned).long().flatten(1), bev.device)  # (B, Q)
    index = (source - 1).clamp(min=0)[..., None].expand_as(bev)
    return bev.gather(1, index).masked_fill((source == 0)[..., None], 0.0)
