"""Pictures, point clouds and CAN bus agree with the tables, judged by the files only."""

import json

import cv2
import numpy as np
import pytest
from pyquaternion import Quaternion

from projects.bevformer.nuscenes.spec import CAMERAS
from projects.synthetic_nuscenes.recording import scene_rig
from projects.synthetic_nuscenes.renderer import Renderer
from projects.synthetic_nuscenes.world import build_world

IMAGE_HW = (225, 400)


class Tables:
    """The rows of a data set by table and token, and boxes in sensor frames."""

    def __init__(self, root):
        self.root = root
        self._rows = {}
        for path in (root / "v1.0-mini").glob("*.json"):
            self._rows[path.stem] = {row["token"]: row for row in json.loads(path.read_text())}

    def all(self, table):
        return list(self._rows[table].values())

    def get(self, table, token):
        return self._rows[table][token]

    def category(self, annotation):
        instance = self.get("instance", annotation["instance_token"])
        return self.get("category", instance["category_token"])["name"]

    def channel(self, data):
        sensor = self.get("calibrated_sensor", data["calibrated_sensor_token"])["sensor_token"]
        return self.get("sensor", sensor)["channel"]

    def global2sensor(self, data):
        matrix = np.eye(4)
        rows = (
            self.get("ego_pose", data["ego_pose_token"]),
            self.get("calibrated_sensor", data["calibrated_sensor_token"]),
        )
        for row in rows:
            pose = Quaternion(row["rotation"]).transformation_matrix
            pose[:3, 3] = row["translation"]
            matrix = np.linalg.inv(pose) @ matrix
        return matrix

    def corners(self, annotation):
        """(8, 3), global frame."""
        width, length, height = annotation["size"]
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
        rotation = Quaternion(annotation["rotation"]).rotation_matrix
        return signs * [length, width, height] @ rotation.T + annotation["translation"]

    def hull(self, annotation, data):
        """Outline of the projected box, (M, 1, 2) float32 pixels; None if it is not in front."""
        corners = np.c_[self.corners(annotation), np.ones(8)] @ self.global2sensor(data).T
        if corners[:, 2].min() < 1.0:
            return None
        intrinsic = self.get("calibrated_sensor", data["calibrated_sensor_token"])[
            "camera_intrinsic"
        ]
        pixels = corners[:, :3] @ np.array(intrinsic).T
        return cv2.convexHull((pixels[:, :2] / pixels[:, 2:]).astype(np.float32))


@pytest.fixture(scope="module")
def tables(synthetic_root):
    return Tables(synthetic_root)


def _mask(hull):
    """Pixels whose middles lie in the outline."""
    mask = np.zeros(IMAGE_HW, dtype=np.uint8)
    cv2.fillConvexPoly(mask, np.round((hull - 0.5) * 16).astype(np.int32), 1, shift=4)
    return mask.astype(bool)


def _redness(image):
    """Red minus blue of a BGR picture, grey levels; the street is grey."""
    return image[..., 2].astype(int) - image[..., 0]


def test_boxes_of_cones_project_onto_orange_pixels(tables):
    """Nothing but the JPEG, the tables and the devkit's conventions go into this."""
    inside, shifted = [], []
    for data in tables.all("sample_data"):
        if tables.channel(data) not in CAMERAS:
            continue
        image = cv2.imread(str(tables.root / data["filename"]))
        for annotation in tables.all("sample_annotation"):
            if (
                annotation["sample_token"] != data["sample_token"]
                or annotation["visibility_token"] != "4"
                or tables.category(annotation) != "movable_object.trafficcone"
            ):
                continue
            hull = tables.hull(annotation, data)
            if hull is None:
                continue
            x0, y0, width, height = cv2.boundingRect(hull)
            if height < 12 or x0 < 0 or y0 < 0 or x0 + width > 400 or y0 + height > 225:
                continue
            # The axis of the cone, over the middle half of its height, and the same above it.
            column, rows = x0 + width // 2, slice(y0 + height // 4, y0 + 3 * height // 4)
            inside.append(_redness(image[rows, column]).mean())
            above = slice(max(0, rows.start - height), max(1, rows.stop - height))
            shifted.append(_redness(image[above, column]).mean())
    assert len(inside) >= 5
    assert np.min(inside) > 40
    assert np.median(shifted) < 25


def test_rendered_objects_fill_their_projected_boxes(tables):
    """Render again with object numbers: the numbers lie inside the boxes of the tables, tightly."""
    world = build_world("scene-0103", seed=0, duration_s=1.5)
    renderer, rig = Renderer(world, 0), scene_rig(0, "scene-0103", IMAGE_HW)
    scene = next(row for row in tables.all("scene") if row["name"] == "scene-0103")
    sample = scene["first_sample_token"]
    annotations = [row for row in tables.all("sample_annotation") if row["sample_token"] == sample]
    key_us = tables.get("sample", sample)["timestamp"]
    key_xy = world.object_poses(0.0)[:, :2, 3]
    checked = tight = 0
    for data in tables.all("sample_data"):
        channel = tables.channel(data)
        if data["sample_token"] != sample or channel not in CAMERAS:
            continue
        time_s = (data["timestamp"] - key_us) / 1e6
        camera, poses = rig.cameras[channel], world.object_poses(time_s)
        camera2world = world.ego_pose(time_s) @ camera.camera2ego
        picture = renderer.render(
            camera.intrinsic, camera2world, poses, IMAGE_HW, np.random.default_rng(0)
        )
        on_disk = cv2.imread(str(tables.root / data["filename"]))[..., ::-1].astype(int)
        assert np.abs(picture.rgb.astype(int) - on_disk).mean() < 5.0
        for annotation in annotations:
            gap = np.abs(key_xy - annotation["translation"][:2]).sum(axis=1)
            index = int(gap.argmin())
            assert gap[index] < 1e-6
            # The tables hold the place at the key frame; the camera fired a little earlier.
            moved = np.linalg.norm(poses[index, :2, 3] - key_xy[index])
            hull = tables.hull(annotation, data)
            pixels = picture.object_at == index
            if hull is None or moved > 0.02 or pixels.sum() < 60:
                continue
            box = _mask(hull)
            grown = cv2.dilate(box.astype(np.uint8), np.ones((3, 3))).astype(bool)
            assert (pixels & grown).sum() == pixels.sum(), tables.category(annotation)
            rows, columns = np.nonzero(pixels)
            x0, y0, width, height = cv2.boundingRect(hull)
            whole = x0 >= 0 and y0 >= 0 and x0 + width <= 400 and y0 + height <= 225
            if whole and picture.seen[index] == picture.unhidden[index]:
                assert np.ptp(rows) > 0.5 * height - 2, tables.category(annotation)
                assert np.ptp(columns) > 0.5 * width - 2, tables.category(annotation)
                tight += 1
            checked += 1
    assert checked > 15
    assert tight >= 5


def test_lidar_counts_are_the_points_inside_the_boxes(tables):
    points_in_boxes = []
    for data in tables.all("sample_data"):
        if tables.channel(data) != "LIDAR_TOP":
            continue
        path = tables.root / data["filename"]
        points = np.fromfile(path, dtype=np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
        sensor2global = np.linalg.inv(tables.global2sensor(data))
        points_global = points @ sensor2global[:3, :3].T + sensor2global[:3, 3]
        points_global = points_global[points_global[:, 2] > 0.02]  # without the ground
        for annotation in tables.all("sample_annotation"):
            if annotation["sample_token"] != data["sample_token"]:
                continue
            rotation = Quaternion(annotation["rotation"]).rotation_matrix
            local = (points_global - annotation["translation"]) @ rotation
            width, length, height = annotation["size"]
            inside = (np.abs(local) <= np.array([length, width, height]) / 2 + 1e-4).all(axis=1)
            points_in_boxes.append((annotation["num_lidar_pts"], inside.sum()))
    counts, insides = np.array(points_in_boxes).T
    assert (counts > 0).sum() > 100
    # A tree may reach into the box of a bus, and feet may stand in the layer cut off with the ground.
    assert (counts == insides).mean() > 0.9
    assert (np.abs(counts - insides) <= 2 + 0.35 * insides).all()


def test_visibility_levels_are_all_used(tables):
    levels = {row["visibility_token"] for row in tables.all("sample_annotation")}
    assert levels == {"1", "2", "3", "4"}
    assert {row["token"] for row in tables.all("visibility")} == levels


def test_every_camera_has_its_own_time_and_pose(tables):
    sample = tables.all("sample")[1]
    shots = [row for row in tables.all("sample_data") if row["sample_token"] == sample["token"]]
    assert len(shots) == 7
    times = {tables.channel(row): row["timestamp"] - sample["timestamp"] for row in shots}
    assert times.pop("LIDAR_TOP") == 0
    assert len(set(times.values())) == 6
    assert all(-50_000 <= value <= 50_000 for value in times.values())
    places = {tuple(tables.get("ego_pose", row["ego_pose_token"])["translation"]) for row in shots}
    assert len(places) == 7
    for row in shots:
        assert (tables.root / row["filename"]).is_file()
        if row["fileformat"] == "jpg":
            assert (row["height"], row["width"]) == IMAGE_HW
            assert cv2.imread(str(tables.root / row["filename"])).shape[:2] == IMAGE_HW


def test_can_bus_agrees_with_the_ego_poses(tables):
    for scene in tables.all("scene"):
        path = tables.root / "can_bus" / f"{scene['name']}_pose.json"
        messages = json.loads(path.read_text())
        utimes = np.array([message["utime"] for message in messages])
        np.testing.assert_allclose(np.diff(utimes), 20_000, atol=1)
        positions = np.array([message["pos"] for message in messages])
        speeds = np.array([message["vel"][0] for message in messages])
        moved = np.linalg.norm(np.diff(positions, axis=0), axis=1) / 0.02
        np.testing.assert_allclose(moved, (speeds[:-1] + speeds[1:]) / 2, atol=0.08)
        samples = [row for row in tables.all("sample") if row["scene_token"] == scene["token"]]
        for sample in samples:
            assert utimes[0] < sample["timestamp"] < utimes[-1]
            data = next(
                row
                for row in tables.all("sample_data")
                if row["sample_token"] == sample["token"] and row["fileformat"] == "pcd"
            )
            ego = tables.get("ego_pose", data["ego_pose_token"])
            near = messages[int(np.abs(utimes - sample["timestamp"]).argmin())]
            np.testing.assert_allclose(near["pos"], ego["translation"], atol=0.15)
            np.testing.assert_allclose(near["orientation"], ego["rotation"], atol=0.01)


def test_map_mask_holds_the_drive(tables):
    for scene in tables.all("scene"):
        row = next(row for row in tables.all("map") if row["log_tokens"] == [scene["log_token"]])
        mask = cv2.imread(str(tables.root / row["filename"]), cv2.IMREAD_GRAYSCALE)
        assert set(np.unique(mask)) == {0, 255}
        for pose in tables.all("ego_pose"):
            data = tables.get("sample_data", pose["token"])
            if tables.get("sample", data["sample_token"])["scene_token"] == scene["token"]:
                x, y, z = pose["translation"]
                assert mask[mask.shape[0] - 1 - int(y / 0.1), int(x / 0.1)] == 255
                assert z == 0.0
