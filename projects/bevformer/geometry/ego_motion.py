"""The ego vehicle's motion between two frames, and how it moves the previous BEV features.

Shape legend: B batch, Q BEV queries (= Hb * Wb), C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projects.bevformer.geometry.bev_grid import vehicle_cell
from projects.bevformer.geometry.can_bus import CAN_POSITION, CAN_YAW_DEG, CAN_YAW_RAD
from projects.bevformer.geometry.precision import full_precision
from projects.bevformer.transfer import upload

# (2, 3), x and y ahead and left of the ego origin from (x, y, 1) of the lidar: what the original takes for
# any rig. nuScenes' own lidar is turned by 0.1 degrees against it and 0.94 m ahead.
OFFICIAL_LIDAR2EGO = ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))


def relative_can_bus(
    can_bus: NDArray[np.float64],
    previous: NDArray[np.float64] | None,
    heading: str = "wrapped",
) -> NDArray[np.float64]:
    """The `can_bus` vector of a frame relative to the frame before it.

    Args:
        can_bus: (18,) with absolute position (metres) and yaw (degrees).
        previous: the same of the frame before; None at the start of a scene.
        heading: "wrapped" for a turn within -180 to 180 degrees; "official" for the bare difference, -359.8
            where the heading goes from 359.9 to 0.1.

    Returns:
        A copy of `can_bus` whose position and yaw in degrees are minus those of `previous`, or zero at the
        start of a scene. The other columns, yaw in radians among them, stay absolute.
    """
    relative = np.array(can_bus, dtype=np.float64)
    for columns in (CAN_POSITION, CAN_YAW_DEG):
        relative[columns] = 0.0 if previous is None else relative[columns] - previous[columns]
    if heading == "wrapped":
        relative[CAN_YAW_DEG] -= 360.0 * np.round(relative[CAN_YAW_DEG] / 360.0)
    return relative


@dataclass(frozen=True)
class EgoMotion:
    """How the ego vehicle of each sample has moved since the previous frame; zero at a scene start.

    Attributes:
        delta_xy_global: (B, 2) metres, global axes: this frame's position minus the previous one's.
        yaw_rad: (B,) absolute heading in this frame, global axes.
        turn_deg: (B,) this frame's heading minus the previous one's, counter-clockwise seen from above.
        lidar2ego: (B, 2, 3) or (1, 2, 3), the lidar on the vehicle seen from above, see `OFFICIAL_LIDAR2EGO`.
    """

    delta_xy_global: Tensor
    yaw_rad: Tensor
    turn_deg: Tensor
    lidar2ego: Tensor

    @classmethod
    def from_can_bus(cls, can_bus: Tensor, lidar2ego: Tensor | None = None) -> EgoMotion:
        """From (B, 18) vectors as `relative_can_bus` returns them.

        Args:
            can_bus: (B, 18).
            lidar2ego: as in the attributes; None is `OFFICIAL_LIDAR2EGO`.
        """
        return cls(
            delta_xy_global=can_bus[:, CAN_POSITION][:, :2],
            yaw_rad=can_bus[:, CAN_YAW_RAD],
            turn_deg=can_bus[:, CAN_YAW_DEG],
            lidar2ego=can_bus.new_tensor([OFFICIAL_LIDAR2EGO]) if lidar2ego is None else lidar2ego,
        )

    def delta_xy_lidar(self) -> Tensor:
        """(B, 2) metres along the axes of this frame's lidar: how far the lidar has moved."""
        # 1. the ego origin in this frame's ego axes: at angle a in the global frame it moved towards a - yaw
        dx, dy = self.delta_xy_global.unbind(dim=-1)
        length = torch.sqrt(dx**2 + dy**2)
        angle = self.yaw_rad - torch.atan2(dy, dx)
        ahead, left = length * torch.cos(angle), -length * torch.sin(angle)
        # 2. the lidar also moves where the vehicle turns under it: from R(-turn) p to its place p
        x, y = self.lidar2ego[..., 2].unbind(dim=-1)
        turn = self.turn_deg * (math.pi / 180)
        ahead = ahead + x - (turn.cos() * x + turn.sin() * y)
        left = left + y - (turn.cos() * y - turn.sin() * x)
        # 3. along the lidar's axes
        x_axis, y_axis = self.lidar2ego[..., :2].unbind(dim=-1)  # in ego axes
        ego = torch.stack((ahead, left), dim=-1)
        return torch.stack(((x_axis * ego).sum(dim=-1), (y_axis * ego).sum(dim=-1)), dim=-1)

    def bev_shift(self, pc_range: Sequence[float]) -> Tensor:
        """Translation as a fraction of the BEV grid.

        Args:
            pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.

        Returns:
            (B, 2) float32 (x, y) to add to reference points given as fractions of the grid.

        Source: BEVFormer (arXiv 2203.17270), section 3.4.
        """
        x_min, y_min, _, x_max, y_max, _ = pc_range
        x, y = self.delta_xy_lidar().unbind(dim=-1)
        return torch.stack((x / (x_max - x_min), y / (y_max - y_min)), dim=-1).float()


def planar_lidar2ego(matrices: Sequence[NDArray[np.float64] | None]) -> Tensor:
    """B (4, 4) matrices -> (B, 2, 3) float64 for `EgoMotion`; None is `OFFICIAL_LIDAR2EGO`."""
    planar = [
        OFFICIAL_LIDAR2EGO if matrix is None else np.asarray(matrix)[:2, [0, 1, 3]]
        for matrix in matrices
    ]
    return torch.from_numpy(np.array(planar, dtype=np.float64))


def bev_shift(delta_xy_global: Tensor, ego_yaw_rad: Tensor, pc_range: Sequence[float]) -> Tensor:
    """`EgoMotion.bev_shift` of a translation (B, 2) in metres and a heading (B,), without a turn."""
    lidar2ego = delta_xy_global.new_tensor([OFFICIAL_LIDAR2EGO])
    motion = EgoMotion(delta_xy_global, ego_yaw_rad, torch.zeros_like(ego_yaw_rad), lidar2ego)
    return motion.bev_shift(pc_range)


def rotate_bev(
    bev: Tensor,
    delta_yaw_deg: Tensor | NDArray[np.float64] | Sequence[float],
    bev_hw: tuple[int, int],
    pc_range: Sequence[float],
    center: Sequence[float] | None = None,
) -> Tensor:
    """Rotate each sample's BEV features by the ego rotation since the previous frame.

    Args:
        bev: (B, Q, C) previous BEV features.
        delta_yaw_deg: (B,) the ego's turn in degrees, counter-clockwise seen from above; static objects
            turn the other way on the grid.
        bev_hw: rows and columns of the grid.
        pc_range: (x_min, y_min, z_min, x_max, y_max, z_max), metres, lidar frame.
        center: None turns about the lidar, at (0, 0) of the range, in metres. (column, row) turns about that
            place in cells, as the original does, whose recipes use (100, 100) for any grid.

    Returns:
        (B, Q, C) features; cells that enter from outside the grid are zero. The input is not modified.

    Raises:
        ValueError: Q is not Hb * Wb, or the number of angles is not B.

    Source: BEVFormer (arXiv 2203.17270), section 3.4; nearest neighbour as in the original.
    """
    bev_h, bev_w = bev_hw
    turn_deg = torch.as_tensor(delta_yaw_deg, dtype=torch.float64)
    if bev.shape[1] != bev_h * bev_w or len(turn_deg) != bev.shape[0]:
        raise ValueError(
            f"bev {tuple(bev.shape)} does not fit a {bev_h}x{bev_w} grid and {len(turn_deg)} angles"
        )
    # The source cells are computed where the angles are, normally on the CPU; the features are only gathered.
    stretch = 1.0
    if center is None:
        center = vehicle_cell(bev_h, bev_w, pc_range)
        stretch = (pc_range[4] - pc_range[1]) / bev_h / ((pc_range[3] - pc_range[0]) / bev_w)
    source = upload(_source_cells(turn_deg, bev_hw, center, stretch), bev.device)  # (B, Q)
    index = (source - 1).clamp(min=0)[..., None].expand_as(bev)
    return bev.gather(1, index).masked_fill((source == 0)[..., None], 0.0)


def _source_cells(
    turn_deg: Tensor, bev_hw: tuple[int, int], center: Sequence[float], stretch: float
) -> Tensor:
    """(B,) degrees -> (B, Q) long, the cell each rotated cell comes from, counted from 1; 0 is outside.

    `stretch` is the length of a cell along y by that along x, 1 for square cells.

    The arithmetic is that of torchvision's `rotate` with nearest neighbours, cell for cell, in operators
    that can be traced.
    """
    bev_h, bev_w = bev_hw
    x0, y0 = center[0] - bev_w * 0.5, center[1] - bev_h * 0.5
    angle = -turn_deg * (math.pi / 180)
    cos, x_of_y, y_of_x = angle.cos(), angle.sin() * stretch, angle.sin() / stretch
    to_source = torch.stack(
        (cos, x_of_y, -cos * x0 - x_of_y * y0 + x0, -y_of_x, cos, y_of_x * x0 - cos * y0 + y0),
        dim=-1,
    ).reshape(-1, 2, 3)
    with full_precision(turn_deg.device):  # in half precision the product is off by cells
        x = torch.linspace(-bev_w * 0.5 + 0.5, bev_w * 0.5 - 0.5, bev_w, device=turn_deg.device)
        y = torch.linspace(-bev_h * 0.5 + 0.5, bev_h * 0.5 - 0.5, bev_h, device=turn_deg.device)
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        cells = torch.stack((grid_x, grid_y, torch.ones_like(grid_x)), dim=-1).reshape(1, -1, 3)
        size = cells.new_tensor((bev_w, bev_h))
        to_source = to_source.to(cells.dtype) / (0.5 * size[:, None])
        fractions = cells.expand(len(turn_deg), -1, -1).bmm(to_source.transpose(1, 2))
        column, row = (((fractions + 1) * size - 1) / 2).round().unbind(dim=-1)
    inside = (column >= 0) & (column < bev_w) & (row >= 0) & (row < bev_h)
    return torch.where(inside, row * bev_w + column + 1, torch.zeros_like(row)).long()
