"""Properties of the original that the data sets can reproduce, and the ego motion in the metas of a frame."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from projects.bevformer.geometry.ego_motion import relative_can_bus
from projects.bevformer.geometry.poses import pose_matrix

# Option of the data sets -> its values, the correct one, which is the default, first.
QUIRKS = {
    "can_bus_quaternion": ("wxyz", "official"),
    "can_bus_message": ("same", "official"),
    "can_bus_heading": ("wrapped", "official"),
    "lidar_axes": ("lidar2ego", "official"),
    "result_velocity": ("horizontal", "official"),
}


def motion_keys(info: Mapping[str, Any], heading: str, axes: str) -> dict[str, Any]:
    """What the network needs for the ego motion besides `can_bus`.

    The data set adds it after the pipeline, so that it does not depend on `meta_keys`.

    Args:
        info: record of an info file.
        heading, axes: `can_bus_heading` and `lidar_axes` of TemporalNuScenesDataset.

    Returns:
        dict of keys for the meta of the frame; a key that is left out is read as the default of
        `Frame.from_metas`.
    """
    keys: dict[str, Any] = {} if heading == "wrapped" else {"can_bus_heading": heading}
    if axes == "lidar2ego":
        keys[axes] = pose_matrix(info["lidar2ego_rotation"], info["lidar2ego_translation"])
    return keys


def relative_metas(metas: Sequence[dict]) -> list[dict]:
    """Metas of a queue as training expects them; the given metas are not modified.

    Args:
        metas: T metas in time order, `can_bus` absolute.

    Returns:
        T new metas with `prev_bev_exists`. Position and yaw in degrees in `can_bus` are differences to the
        previous frame of the queue; 0 for the first frame and after a change of scene.
    """
    queue = []
    previous = None
    for meta in metas:
        same_scene = previous is not None and previous["scene_token"] == meta["scene_token"]
        can_bus = relative_can_bus(
            meta["can_bus"],
            previous["can_bus"] if previous and same_scene else None,
            meta.get("can_bus_heading", "wrapped"),
        )
        queue.append({**meta, "can_bus": can_bus, "prev_bev_exists": same_scene})
        previous = meta
    return queue
