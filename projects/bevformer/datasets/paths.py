"""Where the files of info records lie."""

from __future__ import annotations

import contextlib
import os.path as osp
from typing import Any

from mmdet3d.utils import get_root_logger

from projects.bevformer.files.data_files import join_root, read_image
from projects.bevformer.nuscenes.infos import path_below_root
from projects.bevformer.nuscenes.records import recorded_size

# Of the image's size. nuScenes' cameras are up to 0.05 off; most images made smaller by 0.95 more.
_OFF_CENTRE = 0.06


class DataPaths:
    """Paths of an info file's records, also where the file was written on another machine.

    Args:
        data_root: folder that paths are relative to; None or "" for the working directory.
        record: one of its records. Where its first picture exists only below data_root, not where it says,
            the paths are of another machine, and what follows its root is looked for in data_root.
        ann_file: the info file, for that message.
    """

    def __init__(self, data_root: str | None, record: dict[str, Any], ann_file: str) -> None:
        self.data_root, self.ann_file = data_root, ann_file
        self._moved = False
        example = next(iter(record["cams"].values()))["data_path"]
        below = path_below_root(example)
        if below is not None and not osp.exists(self.join(example)):
            found = osp.join(data_root or "", below)
            self._moved = osp.exists(found)  # if not, loading reports it
            if self._moved:
                get_root_logger().info(
                    f"{ann_file} names {example}, which does not exist; files are read from {found} etc."
                )

    def join(self, path: str) -> str:
        """Path of a file that a record names."""
        below = path_below_root(path) if self._moved else None
        if below is None:
            return join_root(self.data_root, path)
        # With the root made absolute `below` is never taken for a path that begins with it.
        return join_root(osp.abspath(self.data_root or ""), below)

    def resolve(self, info: dict[str, Any]) -> dict[str, Any]:
        """Replace the paths of a record, in place, by those of the files; returns it."""
        info["lidar_path"] = self.join(info["lidar_path"])
        for camera in info["cams"].values():
            camera["data_path"] = self.join(camera["data_path"])
        return info


def gaps(metadata: dict[str, Any], record: dict[str, Any], paths: DataPaths) -> list[str]:
    """Warnings about fields that an info file lacks, and camera matrices that may not fit the images.

    Args:
        metadata: of the file.
        record: one of its records, whose images are read where it does not say their size.
        paths: of the file.
    """
    lines = [f"{paths.ann_file}: {line}" for line in metadata.get("filled_in", ())]
    for name, camera in record["cams"].items():
        if camera["sensor2lidar_rotation"][2][1] > 0.5:  # z of the lidar for y of the camera
            lines.append(
                f"{paths.ann_file}: camera {name} is upside down by sensor2lidar_rotation: is the matrix "
                "transposed? point_lidar = R @ point_camera + t"
            )
        path, size = paths.join(camera["data_path"]), recorded_size(camera)
        if size is None and osp.isfile(path):
            with contextlib.suppress(ValueError):  # damaged: loading says so
                size = read_image(path).shape[1::-1]
        if size is None:
            continue
        centre = [camera["cam_intrinsic"][row][2] for row in (0, 1)]
        if max(abs(x / length - 0.5) for x, length in zip(centre, size)) > _OFF_CENTRE:
            lines.append(
                f"camera image {path} is {size[0]} x {size[1]}, but cam_intrinsic of {paths.ann_file} has "
                f"its centre at ({centre[0]:.0f}, {centre[1]:.0f}): was one of them scaled or cut without "
                "the other?"
            )
    return lines
