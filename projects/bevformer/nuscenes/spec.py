"""Names, orders and splits fixed by nuScenes and its detection benchmark, each defined once."""

from __future__ import annotations

# The cameras of nuScenes in the order of the official weights' `cams_embeds`. Everything else reads the
# list of cameras from the info file (`metadata["cameras"]`).
CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)

# Class index: the column of the classification logits.
CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)

# nuScenes category -> detection class; categories that are not listed are not detected.
CATEGORY_TO_CLASS = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}

# Bicycles and motorcycles within such a box are neither ground truth nor predictions.
BICYCLE_RACK = "static_object.bicycle_rack"

ATTRIBUTES = (
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)

# True-positive error in the devkit's files -> its name in papers and tables.
TP_ERRORS = {
    "trans_err": "mATE",
    "scale_err": "mASE",
    "orient_err": "mAOE",
    "vel_err": "mAVE",
    "attr_err": "mAAE",
}

# Table folder -> {split of an info file: the devkit's name of that split}.
SPLITS = {
    "v1.0-trainval": {"train": "train", "val": "val"},
    "v1.0-test": {"test": "test"},
    "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
}
WITHOUT_ANNOTATIONS = "v1.0-test"
# --version of tools/create_data.py -> the table folders that it reads.
TABLE_FOLDERS = {
    "v1.0": ("v1.0-trainval", "v1.0-test"),
    **{folder: (folder,) for folder in SPLITS},
}
# Number of samples in the full download -> the split, for guesses in error messages.
SPLIT_OF_SIZE = {
    28130: "train of v1.0-trainval",
    6019: "val of v1.0-trainval",
    6008: "test of v1.0-test",
    323: "train of v1.0-mini",
    81: "val of v1.0-mini",
}


def split_of_scene(folder: str) -> dict[str, str]:
    """Scene name -> split of an info file, for the scenes of a table folder."""
    from nuscenes.utils.splits import create_splits_scenes  # imports the whole devkit

    scenes = create_splits_scenes()
    return {name: split for split, devkit in SPLITS[folder].items() for name in scenes[devkit]}
