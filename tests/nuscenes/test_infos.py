import contextlib

import numpy as np
import pytest

from projects.bevformer.geometry.boxes import new_to_old_boxes
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.records import boxes_global
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
    for info in (test_split, empty):
        assert len(load_infos(write_infos([info], box_convention=None))[0]) == 1
    with pytest.raises(ValueError, match="frame 0 has no gt_boxes, others have"):
        load_infos(write_infos([test_split, empty]))
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


@pytest.mark.parametrize("field", ["version", "split"])
@pytest.mark.parametrize(
    "value", [[1], "..", "../v1.0-mini", "/v1.0-mini", "a\\b", "a\x1b[2Kb", "a\0"]
)
def test_version_and_split_lead_to_no_other_folder(make_info, write_infos, field, value):
    with pytest.raises(
        ValueError, match=rf"metadata\['{field}'\] is .*, not the name of a {field}"
    ):
        load_infos(write_infos([make_info()], **{field: value}))


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


def scale(field, factors):
    return lambda info: info.update({field: np.array(info[field]) * factors})


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
        (
            lambda i: i.update(token="a\x1b[31m"),
            "token of frame 1 is .* without control characters",
        ),
        (
            lambda i: i.update(scene_token="a\nb"),
            "scene_token of frame 1 is not a text without contr",
        ),
        (set_camera("data_path", "a\0.jpg"), "CAM_BACK.data_path of frame 1 is not a text without"),
        (
            lambda i: i.update(gt_names=np.array(["car", "a\u202eb", "car"])),
            r"gt_names of frame 1 has .*a\\u202eb'\)?, which is not a text without control characters",
        ),
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
        (lambda i: i.update(valid_flag=np.array([1, 2, 0])), "valid_flag of frame 1 is not a mask"),
        (lambda i: i.update(valid_flag=np.array([0.5, 1, 0])), "valid_flag of frame 1 is not a ma"),
        (lambda i: i.update(valid_flag=np.array(["1", "1", "0"])), "valid_flag .* has no mask"),
        (
            lambda i: i.update(num_lidar_pts=np.array(["3", "0", "5"])),
            "num_lidar_pts of frame 1 has",
        ),
        (lambda i: i.update(num_lidar_pts=np.full(3, np.nan)), "num_lidar_pts of frame 1"),
        (lambda i: i.update(gt_names=np.array([b"car"] * 3)), "gt_names of frame 1 has no texts"),
        (lambda i: i.update(gt_names=np.array([0, 0, 1])), "gt_names of frame 1 has no texts"),
        (
            lambda i: i.update(gt_names=np.array(["car", 3, "car"], dtype=object)),
            "gt_names of frame 1 has 3, which is not a text",
        ),
        (lambda i: i["gt_velocity"].fill(np.inf), "gt_velocity of frame 1 is infinite"),
        (lambda i: i.update(gt_velocity=i["gt_velocity"].astype(str)), "gt_velocity of frame 1"),
        (lambda i: i.update(timestamp="1000000"), "timestamp of frame 1 is not one finite number"),
        (lambda i: i.update(prev=None), "prev of frame 1 is not a text"),
        (lambda i: i.pop("next"), "frame 1 has no next"),  # the other frames have it
        (scale("gt_boxes", 57.3), "gt_boxes of frame 1 has a size above 100 m"),
        (
            scale("gt_boxes", [1, 1, 1, 0, 1, 1, 1]),
            "gt_boxes of frame 1 has a size of zero or less",
        ),
        (scale("gt_boxes", [1e3, 1e3, 1e3, 1, 1, 1, 1]), "gt_boxes .* centre further than 1000 m"),
        (scale("gt_boxes", [1, 1, 1, 1, 1, 1, 57.3]), "gt_boxes .* a yaw that is not in radians"),
        (scale("lidar2ego_rotation", 2), "lidar2ego_rotation of frame 1 is not of length 1"),
        (
            scale("lidar2ego_translation", 1e3),
            "lidar2ego_translation of frame 1 is further than 50",
        ),
        (
            lambda i: i.update(lidar2ego_rotation=np.roll(i["lidar2ego_rotation"], -1)),
            "lidar2ego_rotation of frame 1 tilts the lidar by more than 60 degrees; .* w, x, y, z",
        ),
        (
            lambda i: i.update(ego2global_rotation=[0, 0, 0.8, 0.6]),
            "ego2global_rotation of frame 1 tilts the vehicle",
        ),
        (set_camera("sensor2lidar_translation", [0, 1e3, 0]), "CAM_BACK.* further than 50 m away"),
        (
            set_camera("sensor2lidar_rotation", 2 * np.eye(3)),
            "CAM_BACK.* frame 1 is not a rotation",
        ),
        (set_camera("sensor2lidar_rotation", -np.eye(3)), "CAM_BACK.* frame 1 is not a rotation"),
        (
            set_camera("cam_intrinsic", np.array([[100.0, 0, 0], [0, 100, 0], [200, 112, 1]])),
            "CAM_BACK.cam_intrinsic of frame 1 is not fx, 0, cx",
        ),
        (
            set_camera("cam_intrinsic", np.diag([0.8, 1.4, 1])),
            "CAM_BACK.cam_intrinsic of frame 1 is",
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


def damaged(infos, damage):
    for info in infos:
        damage(info)
    return infos


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            scale("timestamp", 1e-6),
            "timestamps of neighbouring frames differ by 0.5 .* microseconds",
        ),
        (scale("timestamp", 1e-3), "differ by 500 .* microseconds"),
        (scale("timestamp", 1e3), "differ by 5e.08 .* microseconds"),
        (
            lambda i: i.update(timestamp=np.float32(i["timestamp"] + 1.5e15)),
            "samples scene_a_0 and scene_a_1 of one scene have the same timestamp",
        ),
        (scale("ego2global_translation", 1e3), "vehicle drives at .* m/s: it must be in metres"),
        (
            lambda i: i["gt_boxes"].__iadd__([300, 200, 0, 0, 0, 0, 0]),  # axes of the world
            "gt_boxes .* centre further than 100 m away: it must be in the frame of the lidar",
        ),
    ],
)
def test_other_units_are_refused(two_scenes, write_infos, damage, says):
    with pytest.raises(ValueError, match=f"infos.pkl: .*{says}.*create_data.py"):
        load_infos(write_infos(damaged(two_scenes, damage)))


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8, np.float32, object])
def test_valid_flag_becomes_a_mask(make_info, write_infos, dtype):
    flags = np.array([True, False, True])
    (info,), _ = load_infos(write_infos([{**make_info(), "valid_flag": flags.astype(dtype)}]))
    assert info["valid_flag"].dtype == bool
    np.testing.assert_array_equal(info["valid_flag"], flags)


def test_other_kinds_of_the_same_numbers_are_taken(make_info, write_infos):
    other = make_info()
    for field in ("gt_boxes", "gt_velocity"):
        other[field] = other[field].astype(np.float32)
    other["gt_names"] = other["gt_names"].astype(object)
    other["num_lidar_pts"] = other["num_lidar_pts"].astype(np.float64)
    other["can_bus"], other["timestamp"] = other["can_bus"].tolist(), float(other["timestamp"])
    camera = other["cams"]["CAM_BACK"]
    camera.update({field: camera[field].tolist() for field in camera if field != "data_path"})
    (info,), _ = load_infos(write_infos([other]))
    (expected,), _ = load_infos(write_infos([make_info()]))
    np.testing.assert_allclose(info["gt_boxes"], expected["gt_boxes"], rtol=1e-6)
    np.testing.assert_array_equal(info["gt_names"], expected["gt_names"])


OBJECTS = {  # field -> shape of an empty one
    "gt_boxes": (0, 7), "gt_names": (0,), "gt_velocity": (0, 2), "num_lidar_pts": (0,),
    "num_radar_pts": (0,), "valid_flag": (0,), "gt_centers_global": (0, 3),
}  # fmt: skip


def test_arrays_without_rows_get_their_shape_back(make_info, write_infos):
    empty = {**make_info(), **{field: np.zeros(0) for field in OBJECTS}}
    (info,), _ = load_infos(write_infos([empty], box_convention="wlh_negyaw"))
    assert {field: info[field].shape for field in OBJECTS} == OBJECTS
    assert info["valid_flag"].dtype == bool


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (["valid_flag"], {"valid_flag": [True, True, True]}),
        (["valid_flag", "num_radar_pts"], {"valid_flag": [True, False, True]}),
        (["num_lidar_pts"], {"num_lidar_pts": [1, 0, 1]}),
        (["num_radar_pts"], {"num_radar_pts": [0, 0, 0]}),
        (
            ["valid_flag", "num_lidar_pts", "num_radar_pts"],
            {"valid_flag": [True, True, True], "num_lidar_pts": [1, 1, 1]},
        ),
        (["gt_velocity"], {"gt_velocity": [[np.nan, np.nan]] * 3}),
        ([], {}),
    ],
)
def test_missing_optional_fields_of_objects_have_defaults(
    make_info, write_infos, missing, expected
):
    partial = {**make_info(), "valid_flag": np.array([True, False, True])}
    for field in missing:
        del partial[field]
    (info,), metadata = load_infos(write_infos([partial]))
    for field, values in expected.items():
        np.testing.assert_array_equal(info[field], values)
    lines = metadata.get("filled_in", [])
    assert [line.split(":")[0] for line in lines] == [
        f"1 of 1 frames have no {field}"
        for field in ("gt_velocity", "num_lidar_pts", "num_radar_pts", "valid_flag")
        if field in missing
    ]


def test_missing_links_follow_from_the_scene(two_scenes, write_infos):
    for info in two_scenes:
        del info["prev"], info["next"], info["lidar_path"]
    infos, _ = load_infos(write_infos(two_scenes[::-1]))
    assert [info["prev"] for info in infos] == ["", "scene_a_0", "scene_a_1", "", *(
        "scene_b_0", "scene_b_1")]  # fmt: skip
    assert [info["next"] for info in infos][2:4] == ["", "scene_b_1"]
    assert {info["lidar_path"] for info in infos} == {""}


def moving_cars(make_info, number=12, headings=None):
    """Records of cars that drive the way they point, in all directions."""
    yaws = np.linspace(-3, 3, number) if headings is None else np.asarray(headings)
    info = make_info()
    sizes = np.tile([4.5, 1.9, 1.6], (len(yaws), 1))
    info["gt_boxes"] = np.column_stack((np.ones((len(yaws), 3)), sizes, yaws))
    info["gt_velocity"] = 8 * np.column_stack((np.cos(yaws), np.sin(yaws)))
    info["gt_names"] = np.array(["car"] * len(yaws))
    for field in ("num_lidar_pts", "num_radar_pts", "valid_flag"):
        info[field] = np.ones(len(yaws), dtype=int)
    return info


def turned(info, columns):
    """The record with boxes of other columns: whether width is first, and the yaw's sign and offset."""
    width_first, sign, offset = columns
    boxes = info["gt_boxes"].copy()
    if width_first:
        boxes[:, 3:5] = boxes[:, [4, 3]]
    boxes[:, 6] = (sign * boxes[:, 6] + offset + np.pi) % (2 * np.pi) - np.pi
    return {**info, "gt_boxes": boxes}


@pytest.mark.parametrize(
    ("columns", "stamp", "fits"),
    [
        ((False, 1, 0), None, None),
        ((False, 1, 0), "lwh_yaw", None),
        ((True, -1, -np.pi / 2), None, None),
        ((True, -1, -np.pi / 2), "wlh_negyaw", None),
        ((True, 1, 0), None, "w, l, h, yaw: convert"),
        ((False, -1, -np.pi / 2), None, "l, w, h, -yaw - pi/2: convert"),
        ((False, -1, -np.pi / 2), "lwh_yaw", "l, w, h, -yaw - pi/2: convert"),
        ((False, 1, np.pi), None, r"l, w, h, yaw \+ pi: convert"),
        ((False, 1, -np.pi / 2), None, "l, w, h, yaw - pi/2: convert"),
        ((True, -1, np.pi / 2), None, r"w, l, h, -yaw \+ pi/2: convert"),
    ],
)
def test_boxes_are_compared_with_the_way_they_move(make_info, write_infos, columns, stamp, fits):
    cars = moving_cars(make_info, 40)
    path = write_infos([turned(cars, columns)], box_convention=stamp)
    if fits is None:
        (info,), _ = load_infos(path)
        expected = cars["gt_boxes"]
        np.testing.assert_allclose(info["gt_boxes"][:, :6], expected[:, :6])
        np.testing.assert_allclose(np.sin(info["gt_boxes"][:, 6] - expected[:, 6]), 0, atol=1e-9)
        return
    with pytest.raises(
        ValueError, match=rf"infos.pkl: boxes read as .* point \d+ deg.*40 mov.* {fits}"
    ):
        load_infos(path)


def test_velocities_of_another_frame_are_refused(make_info, write_infos):
    info = moving_cars(make_info, 40)
    course = np.random.RandomState(0).uniform(-np.pi, np.pi, len(info["gt_boxes"]))
    info["gt_velocity"] = 8 * np.column_stack((np.cos(course), np.sin(course)))
    with pytest.raises(ValueError, match="no known convention fits; gt_velocity must be m/s along"):
        load_infos(write_infos([info]))


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda i: None, True),
        (lambda i: i["gt_velocity"].__imul__(0.2), False),  # parked
        (lambda i: i["gt_velocity"].fill(np.nan), False),
        (lambda i: i["gt_names"].fill("Auto"), True),  # own classes
        (lambda i: i["gt_boxes"][:, 3:5].fill(0.7), False),  # people
        (lambda i: i["gt_velocity"][4:].fill(0), False),  # too few for a judgement
        (lambda i: i["gt_velocity"][5:].fill(0), True),
    ],
)
def test_headings_are_judged_by_enough_moving_vehicles(make_info, write_infos, change, refused):
    cars = moving_cars(make_info, headings=[0, 1.6, -1.6, 3, 0.2, 1.5])
    info = turned(cars, (False, -1, -np.pi / 2))
    change(info)
    expected = pytest.raises(ValueError, match="degrees away from the velocities")
    with expected if refused else contextlib.nullcontext():
        load_infos(write_infos([info], box_convention="lwh_yaw"))


@pytest.mark.parametrize(
    "drive", [lambda yaws: yaws + np.pi, lambda yaws: yaws + np.linspace(0.6, 1.8, len(yaws))]
)
def test_a_few_cars_may_reverse_or_slide(make_info, write_infos, drive):
    for number, expected in (
        (12, contextlib.nullcontext()),
        (40, pytest.raises(ValueError, match="degrees away from the velocities")),
    ):
        info = moving_cars(make_info, number)
        course = drive(info["gt_boxes"][:, 6])
        info["gt_velocity"] = 8 * np.column_stack((np.cos(course), np.sin(course)))
        with expected:
            load_infos(write_infos([info]))


@pytest.mark.parametrize(
    ("move", "says"),
    [
        (lambda boxes: boxes, None),
        (lambda boxes: boxes + [1e-4, 0, 0, 0, 0, 0, 0.01], None),
        (lambda boxes: boxes - [0, 0, 0.8, 0, 0, 0, 0], "row 0 .* frame 0 .* 0.8 m and 0 degrees"),
        (lambda boxes: boxes + [0, 0, 0, 0, 0, 0, 0.3], "row 0 .* frame 0 .* 0.0 m and 17 degrees"),
    ],
)
def test_boxes_that_are_trained_are_those_that_are_scored(make_info, write_infos, move, says):
    info = make_info()
    boxes = boxes_global(info)
    info.update(gt_centers_global=boxes[:, :3], gt_rotations_global=boxes[:, 6:])
    info["gt_boxes"] = move(info["gt_boxes"])
    expected = pytest.raises(ValueError, match=f"{says} from gt_centers_global") if says else None
    with expected or contextlib.nullcontext():
        load_infos(write_infos([info]))


@pytest.mark.parametrize("stamp", ["lwh_yaw", "wlh_negyaw"])
def test_stamp_that_the_sizes_contradict_is_refused(make_info, write_infos, stamp):
    info = make_info()
    if stamp == "lwh_yaw":
        info["gt_boxes"] = new_to_old_boxes(info["gt_boxes"])
    with pytest.raises(
        ValueError, match=f'"{stamp}" .*, but the sizes of its cars.*mend the stamp'
    ):
        load_infos(write_infos([info], box_convention=stamp))
