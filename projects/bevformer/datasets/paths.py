"""Where the files of info records lie."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmdet3d.utils import get_root_logger

from projects.bevformer.io import join_root
from projects.bevformer.nuscenes.infos import path_below_root


class DataPaths:
    """Paths of an info file's records, also where the file was written on another machine.

    Args:
        data_root: folder that paths are relative to; None or "" for the working directory.
        example: path of one picture. Where it exists only below data_root, not where it says, the paths
            are of another machine, and what follows its root is looked for in data_root.
        ann_file: the info file, for that message.
    """

    def __init__(self, data_root: str | None, example: str, ann_file: str) -> None:
        self.data_root = data_root
        self._moved = False
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
        if self._moved:
            path = path_below_root(path) or path
        return join_root(self.data_root, path)

    def resolve(self, info: dict[str, Any]) -> dict[str, Any]:
        """Replace the paths of a record, in place, by those of the files; returns it."""
        info["lidar_path"] = self.join(info["lidar_path"])
        for camera in info["cams"].values():
            camera["data_path"] = self.join(camera["data_path"])
        return info
