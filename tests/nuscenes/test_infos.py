import numpy as np
import pytest

from projects.bevformer.geometry.boxes import new_to_old_boxes
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.spec import CAMERAS


def test_reads_what_was_written(two_scenes, write_infos):
    infos, metadata = load_infos(write_infos(two_scenes, split="val"))
    assert [info["token"] for info in infos] == [info["token"] for info in two_scenes]
    assert metadata == {
        "version": "v1.0-mini",
        "box_convention": "lwh_yaw",
        "split": "val",
        "cameras": list(CAMERAS),
    }
    np.testing.assert_array_equal(infos[0]["gt_boxes"], two_scenes[0]["gt_boxes"])


def test_scenes_never_interleave(make_info, write_infos):
    shuffled = [
        make_info("scene_b", 1, start_us=1_200_000),
        make_info("scene_a", 2),
        make_info("scene_b", 0, start_us=1_200_000),
        make_info("scene_a", 0),
        make_info("scene_a", 1),
    ]
    infos, _ = load_infos(write_infos(shuffled))
    order = ["scene_a_0", "scene_a_1", "scene_a_2", "scene_b_0", "scene_b_1"]
    assert [info["token"] for info in infos] == order


@pytest.mark.parametrize("stamp", ["wlh_negyaw", None])
def test_old_boxes_are_converted(make_info, write_infos, stamp):
    new, old = make_info(), make_info()
    old["gt_boxes"] = new_to_old_boxes(old["gt_boxes"])
    infos, metadata = load_infos(write_infos([old], box_convention=stamp))
    np.testing.assert_allclose(infos[0]["gt_boxes"], new["gt_boxes"], atol=1e-12)
    assert metadata["box_convention"] == "lwh_yaw"


def test_unstamped_new_boxes_are_recognised(make_info, write_infos):
    infos, metadata = load_infos(write_infos([make_info()], box_convention=None))
    np.testing.assert_array_equal(infos[0]["gt_boxes"], make_info()["gt_boxes"])
    assert metadata["box_convention"] == "lwh_yaw"


@pytest.mark.parametrize("change", ["square cars", "no long class"])
def test_undecidable_convention_is_refused(make_info, write_infos, change):
    info = make_info()
    if change == "square cars":
        info["gt_boxes"][:, 3:5] = 2.0
    else:
        info["gt_names"][:] = "barrier"
    with pytest.raises(ValueError, match='"lwh_yaw".*"wlh_negyaw"'):
        load_infos(write_infos([info], box_convention=None))


def test_no_boxes_need_no_convention(make_info, write_infos):
    test_split, empty = make_info("scene_a"), make_info("scene_b")
    del test_split["gt_boxes"]
    for field in (
        "gt_boxes",
        "gt_names",
        "gt_velocity",
        "num_lidar_pts",
        "num_radar_pts",
        "valid_flag",
    ):
        empty[field] = empty[field][:0]
    assert len(load_infos(write_infos([test_split, empty], box_convention=None))[0]) == 2
    assert load_infos(write_infos([], box_convention=None))[0] == []


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="create_data.py"):
        load_infos(str(tmp_path / "none.pkl"))


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\x93NUMPY"]
)
def test_damaged_file(make_info, write_infos, damage):
    path = write_infos([make_info()])
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(damage(content))
    with pytest.raises(ValueError, match="is not an info file"):
        load_infos(path)


def test_version_must_be_there(make_info, write_infos):
    with pytest.raises(ValueError, match="version"):
        load_infos(write_infos([make_info()], version=None))
    with pytest.raises(ValueError, match=r"version is \[1\], not a text"):
        load_infos(write_infos([make_info()], version=[1]))


def test_unknown_stamp(make_info, write_infos):
    with pytest.raises(ValueError, match="box_convention.*'xyz'"):
        load_infos(write_infos([make_info()], box_convention="xyz"))


def test_stock_mmdet3d_file(make_info, write_infos):
    info = make_info()
    del info["can_bus"], info["scene_token"]
    with pytest.raises(ValueError, match="frame 0 has no scene_token, can_bus.*create_data.py"):
        load_infos(write_infos([info]))


@pytest.mark.parametrize("stamp", [None, list(CAMERAS)])
@pytest.mark.parametrize("frame", [0, 1])
def test_missing_camera_is_named_with_its_sample(make_info, write_infos, stamp, frame):
    infos = [make_info(frame=i) for i in range(2)]
    del infos[frame]["cams"]["CAM_BACK"]
    with pytest.raises(ValueError, match=f"sample scene_a_{frame} has no camera CAM_BACK;"):
        load_infos(write_infos(infos, cameras=stamp))


def with_cameras(info, names):
    """The record with other cameras, in the given order."""
    camera = info["cams"]["CAM_FRONT"]
    return {**info, "cams": {name: dict(camera) for name in names}}


SEVEN = ("CAM_TOP", *CAMERAS)


@pytest.mark.parametrize(
    ("found", "stamp", "expected"),
    [
        (CAMERAS[::-1], None, CAMERAS),  # nuScenes' order, for any order of the record
        (CAMERAS[4::-1], None, CAMERAS[4::-1]),
        (SEVEN, None, SEVEN),
        (SEVEN, SEVEN[::-1], SEVEN[::-1]),
        (SEVEN, CAMERAS[:2], CAMERAS[:2]),  # the others are not used
    ],
)
def test_cameras_come_from_the_file(make_info, write_infos, found, stamp, expected):
    infos, metadata = load_infos(
        write_infos([with_cameras(make_info(), found)], cameras=stamp and list(stamp))
    )
    assert metadata["cameras"] == list(expected)
    assert list(infos[0]["cams"]) == list(expected)


@pytest.mark.parametrize("stamp", ["CAM_FRONT", [], ["CAM_FRONT"] * 2, [1]])
def test_bad_list_of_cameras_is_refused(make_info, write_infos, stamp):
    with pytest.raises(ValueError, match=r"metadata\[.cameras.\] is .* list of different names"):
        load_infos(write_infos([make_info()], cameras=stamp))


def test_wrong_can_bus_length(make_info, write_infos):
    with pytest.raises(ValueError, match="can_bus of frame 0 is not 18 finite numbers"):
        load_infos(write_infos([{**make_info(), "can_bus": np.zeros(16)}]))


def test_sample_twice(make_info, write_infos):
    with pytest.raises(ValueError, match="scene_a_0 occurs twice"):
        load_infos(write_infos([make_info(), make_info()]))


def set_camera(field, value):
    return lambda info: info["cams"]["CAM_BACK"].update({field: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda i: i.update(ego2global_rotation=[1, 0, 0]), "ego2global_rotation of frame 1.* 4 f"),
        (
            lambda i: i.update(lidar2ego_translation=[0, 0, np.nan]),
            "lidar2ego_translation of frame 1",
        ),
        (
            lambda i: i["cams"]["CAM_BACK"].pop("data_path"),
            "frame 1 has no cams.CAM_BACK.data_path",
        ),
        (
            set_camera("cam_intrinsic", np.eye(4)),
            "cams.CAM_BACK.cam_intrinsic of frame 1.* 3 x 3 f",
        ),
        (set_camera("cam_intrinsic", "none"), "cams.CAM_BACK.cam_intrinsic of frame 1"),
        (
            lambda i: i.update(gt_names=i["gt_names"][1:]),
            r"gt_names of frame 1 is \(2,\), not an array of 3:",
        ),
        (
            lambda i: i["gt_boxes"].fill(np.inf),
            "gt_boxes of frame 1 has a row that is not 7 finite",
        ),
        (lambda i: i.update(timestamp=None), "timestamp of frame 1 is not one finite number:"),
        (lambda i: i.update(can_bus=["x"] * 18), "can_bus of frame 1 is not 18"),
        (lambda i: i.update(can_bus=None), "can_bus of frame 1 is not 18"),
        (lambda i: i.update(cams=None), "cams of frame 1 is not a dict of dicts"),
        (lambda i: i.update(token=3), "token of frame 1 is not a text"),
        (lambda i: i.update(lidar_path=None), "lidar_path of frame 1 is not a text"),
        (set_camera("data_path", 3), "cams.CAM_BACK.data_path of frame 1 is not a text"),
        (set_camera("sensor2lidar_rotation", np.zeros((3, 3))), "CAM_BACK.*an invertible matrix"),
        (lambda i: i.update(ego2global_rotation=[0] * 4), "ego2global_rotation .*, not all zero"),
        (lambda i: i.update(gt_boxes=None), "gt_boxes of frame 1 is NoneType, not .* of G x 7"),
        (
            lambda i: i.update(gt_names=["car"] * 3),
            "gt_names of frame 1 is list, not an array of 3",
        ),
        (lambda i: i.update(num_radar_pts=np.zeros(2)), "num_radar_pts of frame 1"),
        (lambda i: i.update(gt_velocity=np.zeros((3, 3))), "gt_velocity of frame 1 .* 3 x 2"),
        (
            lambda i: i.update(gt_centers_global=np.full((3, 3), np.nan)),
            "gt_centers_global of frame 1 has a row that is not 3 finite",
        ),
        (
            lambda i: i.update(gt_rotations_global=np.zeros((3, 4))),
            "gt_rotations_global of frame 1 .* not all zero",
        ),
        (
            lambda i: i.update(gt_attributes=np.array(["", "flying", ""])),
            "gt_attributes of frame 1 has 'flying'",
        ),
        (
            lambda i: i.update(gt_attributes=np.array(["", None, ""], dtype=object)),
            "gt_attributes of frame 1 has None",
        ),
        (
            lambda i: i.update(gt_boxes=np.zeros((3, 9))),
            r"gt_boxes of frame 1 is \(3, 9\), not an array of 3 x 7",
        ),
    ],
)
def test_broken_numbers_are_named(make_info, write_infos, damage, message):
    infos = [make_info("scene_a", frame) for frame in range(3)]
    damage(infos[1])
    with pytest.raises(ValueError, match=f"infos.pkl: .*{message}.*create_data.py"):
        load_infos(write_infos(infos))


@pytest.mark.parametrize("infos", [{"token": {}}, ["text"], None])
def test_infos_must_be_a_list_of_dicts(write_infos, infos):
    with pytest.raises(ValueError, match='"infos" is not a list of dicts'):
        load_infos(write_infos(infos))


def test_version_and_split_must_agree(make_info, write_infos):
    with pytest.raises(
        ValueError, match="split 'test' of version 'v1.0-mini', which has train and"
    ):
        load_infos(write_infos([make_info()], split="test"))
    load_infos(write_infos([make_info()], version="my-own", split="test"))
