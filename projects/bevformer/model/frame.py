"""One time step as tensors: everything the network knows about cameras and ego motion.

Shape legend: B batch, N cameras.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projects.bevformer.geometry.can_bus import CAN_SIZE
from projects.bevformer.geometry.ego_motion import EgoMotion, planar_lidar2ego, relative_can_bus
from projects.bevformer.model.bev_encoder.packed_queries import PackedQueries
from projects.bevformer.transfer import upload


@dataclass(frozen=True)
class Frame:
    """One time step of B streams; below it the network takes tensors only.

    `can_bus`, `motion` and a tensor in `has_prev` or `exists` normally stay on the CPU, where the metas are;
    what the network needs of them is uploaded without a sync.

    Attributes:
        lidar2img: (B, N, 4, 4) float32, lidar points to pixels of the padded image.
        image_hw: height and width of the padded image, pixels.
        can_bus: (B, 18) float32, position and yaw in degrees relative to the previous frame.
        motion: ego motion since the previous frame.
        has_prev: whether `prev_bev` is the previous frame: True for all samples, False for none, or (B,)
            bool.
        exists: the same for the frame itself, which BEVFormer v2 may ask for beyond the ends of a scene.
        image_flip: (B,) bool, samples whose images are mirrored for the backbone; None for none.
        bev_augmentation: (B, 2, 2) linear map of the ground plane (metres, lidar frame) by which the
            boxes were moved and the BEV has to be; None for none.
        visible: the queries that each camera sees, where they have been computed ahead.
        cameras: names of the N cameras, where the metas give them.
    """

    lidar2img: Tensor
    image_hw: tuple[int, int]
    can_bus: Tensor
    motion: EgoMotion
    has_prev: bool | Tensor = True
    exists: bool | Tensor = True
    image_flip: Tensor | None = None
    bev_augmentation: Tensor | None = None
    visible: PackedQueries | None = None
    cameras: tuple[str, ...] = ()

    @classmethod
    def from_metas(
        cls,
        metas: Sequence[Mapping[str, Any]],
        previous: Sequence[NDArray[np.float64] | None] | None = None,
        device: str | torch.device | None = None,
    ) -> Frame:
        """The only reader of metas.

        Args:
            metas: B metas with `lidar2img`, `img_shape` and `can_bus`. Training queues also give
                `prev_bev_exists`; BEVFormer v2 `frame_exists` and `bev_augmentation`. Optional: `image_flip`;
                `lidar2ego` (4, 4), else the lidar is taken to look as in `OFFICIAL_LIDAR2EGO`;
                `can_bus_heading`, see `relative_can_bus`.
            previous: per sample the (18,) `can_bus` of the frame before, or None at the start of a scene;
                then all `can_bus` are absolute. None: they are relative to the frame before already, as in
                a training queue, and `prev_bev_exists` says where there is one.
            device: of the tensors; None is the CPU.

        Raises:
            ValueError: a meta lacks a key, the images are not all padded to one size, the samples have
                different numbers of cameras, `can_bus` is not of 18 numbers, or a number is not finite.
        """
        for meta in metas:
            for key in ("lidar2img", "img_shape", "can_bus"):
                if key not in meta:
                    sample = meta.get("sample_idx")
                    raise ValueError(f"the meta of {sample} has no {key}: add it to meta_keys")
        can_bus = [np.asarray(meta["can_bus"], dtype=np.float64) for meta in metas]
        if any(vector.shape != (CAN_SIZE,) for vector in can_bus):
            raise ValueError(f"can_bus must hold {CAN_SIZE} numbers, got {can_bus}")
        for meta in metas:  # a camera with a NaN would see nothing, without a word
            for key in ("lidar2img", "can_bus"):
                if not np.isfinite(meta[key]).all():
                    raise ValueError(f"{key} of {meta.get('sample_idx')} has a NaN or an infinity")
        if previous is None:
            has_prev = [bool(meta.get("prev_bev_exists", True)) for meta in metas]
        else:
            has_prev = [pose is not None for pose in previous]
            headings = [meta.get("can_bus_heading", "wrapped") for meta in metas]
            can_bus = list(map(relative_can_bus, can_bus, previous, headings))
        stacked = torch.from_numpy(np.stack(can_bus))
        lidar2ego = [meta.get("lidar2ego") for meta in metas]
        device = torch.device(device or "cpu")
        flips = [bool(meta.get("image_flip")) for meta in metas]
        return cls(
            lidar2img=upload(_stack_lidar2img(metas), device),
            image_hw=_padded_image_hw(metas),
            can_bus=stacked.float(),
            motion=EgoMotion.from_can_bus(stacked, planar_lidar2ego(lidar2ego)),
            has_prev=_all_none_or_some(has_prev),
            exists=_all_none_or_some([bool(meta.get("frame_exists", True)) for meta in metas]),
            image_flip=upload(torch.tensor(flips), device) if any(flips) else None,
            bev_augmentation=_planar_maps([meta.get("bev_augmentation") for meta in metas]),
            cameras=tuple(metas[0].get("cameras", ())),
        )


def _all_none_or_some(flags: list[bool]) -> bool | Tensor:
    """True, False, or (B,) bool where they differ."""
    return flags[0] if len(set(flags)) == 1 else torch.tensor(flags)


def _planar_maps(matrices: list[NDArray[np.float64] | None]) -> Tensor | None:
    """B (3, 3) matrices or None -> (B, 2, 2) on the CPU, or None where no sample has one."""
    if all(matrix is None for matrix in matrices):
        return None
    planar = torch.eye(2).repeat(len(matrices), 1, 1)
    for sample, matrix in enumerate(matrices):
        if matrix is not None:
            planar[sample] = torch.as_tensor(matrix)[:2, :2]
    return planar


def _stack_lidar2img(metas: Sequence[Mapping[str, Any]]) -> Tensor:
    """B metas -> (B, N, 4, 4) float32."""
    rigs = {(len(meta["lidar2img"]), *meta.get("cameras", ())) for meta in metas}
    if len(rigs) != 1:
        raise ValueError(f"samples of one batch must have the same cameras, got {rigs}")
    matrices = np.stack([np.stack(meta["lidar2img"]) for meta in metas])
    return torch.from_numpy(matrices.astype(np.float32))


def _padded_image_hw(metas: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """The one padded image size, (height, width) pixels, of all cameras and samples."""
    sizes = {tuple(shape[:2]) for meta in metas for shape in meta["img_shape"]}
    if len(sizes) != 1:
        what = f"all images of a batch must be padded to one size, got {sorted(sizes)}"
        raise ValueError(f"{what}: set PadMultiViewImage(size=...) in the pipeline")
    height, width = sizes.pop()
    return height, width
