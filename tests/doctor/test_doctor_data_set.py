"""Damaged data sets: what the doctor finds in them."""

import json
import pickle
import re
import shutil

import cv2
import numpy as np
import pytest

from projects.bevformer.doctor.data_set import check_data_set
from projects.bevformer.doctor.images import check_images
from projects.bevformer.doctor.info_files import check_info_files
from projects.bevformer.geometry.boxes import new_to_old_boxes


def troubles(findings):
    return [finding for finding in findings if finding.level != "ok"]


def images_of(root, camera):
    return sorted((root / "samples" / camera).iterdir())


def test_a_whole_data_set(whole_root):
    findings = check_data_set(str(whole_root), deep=True)
    assert troubles(findings) == []
    lines = " ".join(finding.line() for finding in findings)
    for says in ("2 scenes, 8 key frames", "mini train: 1 scenes, 4 key frames, all 24 images",
                 "2 scenes have theirs", "48 of 48 decoded"):  # fmt: skip
        assert says in lines


def remove_table(root, replace):
    (root / "v1.0-mini" / "sample.json").unlink()


def remove_image(root, replace):
    images_of(root, "CAM_BACK")[0].unlink()


def rename_scene(root, replace):
    path = root / "v1.0-mini" / "scene.json"
    replace(path, path.read_bytes().replace(b"scene-0061", b"scene-9999"))


def remove_can_bus(root, replace):
    shutil.rmtree(root / "can_bus")


def remove_can_bus_scene(root, replace):
    (root / "can_bus" / "scene-0061_pose.json").unlink()


def break_can_bus(root, replace):
    path = root / "can_bus" / "scene-0061_pose.json"
    messages = json.loads(path.read_text())
    messages[3]["vel"] = [0, 0]
    replace(path, json.dumps(messages).encode())


@pytest.mark.parametrize(
    ("damage", "level", "says"),
    [
        (shutil.rmtree, "broken", "is not a folder"),
        (
            lambda root, replace: shutil.rmtree(root / "v1.0-mini"),
            "broken",
            "holds none of v1.0-tr",
        ),
        (remove_table, "broken", "sample.json does not exist"),
        (remove_image, "broken", "scene-0... lacks 1 of 24 images, the first is samples/CAM_BACK/"),
        (remove_can_bus, "broken", "no CAN bus folder"),
        (remove_can_bus_scene, "broken", "scene-0061_pose.json does not exist"),
        (break_can_bus, "broken", "scene-0061_pose.json: vel of message 3"),
        (rename_scene, "warning", r"1 scenes \(scene-9999\) are in no split"),
    ],
)
def test_damage_is_found(data_root, replace, damage, level, says):
    damage(*((data_root,) if damage is shutil.rmtree else (data_root, replace)))
    (finding,) = troubles(check_data_set(str(data_root)))
    assert finding.level == level
    assert re.search(says, finding.line())


def test_no_scene_in_a_split_is_broken(data_root, replace):
    path = data_root / "v1.0-mini" / "scene.json"
    replace(path, path.read_bytes().replace(b"scene-0", b"scene-9"))
    (finding,) = troubles(check_data_set(str(data_root)))
    assert finding.level == "broken"
    assert re.search("none of its scenes, such as scene-9..., is in a split", finding.line())


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_gets_the_number_of_images(whole_root, workers):
    totals = []

    def progress(images, total):
        totals.append(total)
        return images

    check_data_set(str(whole_root), deep=True, workers=workers, progress=progress)
    assert totals == [48]


def test_samples_without_tokens_are_a_finding_of_the_tables(data_root, replace):
    path = data_root / "v1.0-mini" / "sample.json"
    replace(path, path.read_bytes().replace(b'"token"', b'"name"', 1))
    (finding,) = troubles(check_data_set(str(data_root)))
    assert "sample.json: record 0 (without token) has no 'token'" in finding.line()
    files = {"data.val": str(data_root / "synthetic_infos_temporal_val.pkl")}
    assert troubles(check_info_files(files, str(data_root))) == []


def test_missing_archives_are_found(data_root):
    scene_images = {}
    for table in ("sample_data", "sample", "scene"):
        scene_images[table] = json.loads((data_root / "v1.0-mini" / f"{table}.json").read_text())
    (scene,) = [s["token"] for s in scene_images["scene"] if s["name"] == "scene-0061"]
    samples = {s["token"] for s in scene_images["sample"] if s["scene_token"] == scene}
    for row in scene_images["sample_data"]:
        if row["sample_token"] in samples and "CAM" in row["filename"]:
            (data_root / row["filename"]).unlink()
    (finding,) = troubles(check_data_set(str(data_root)))
    assert (finding.level, finding.where) == ("broken", "v1.0-mini train")
    assert "none of the images of its 1 scenes" in finding.what


def jpeg(height, width, channels=3):
    image = np.random.RandomState(0).randint(0, 255, (height, width, channels), np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def cut(content, share):
    return content[: int(len(content) * share)]


IMAGES = {
    "whole": (lambda c: c, ""),
    "missing": (None, "No such file"),
    "empty": (lambda c: b"", "is empty"),
    "random": (lambda c: bytes(range(256)) * 9, "cannot be decoded"),
    "cut": (lambda c: cut(c, 0.5), "cut off"),
    "zeroed": (lambda c: c[:3000] + bytes(512) + c[3512:], "block of zeros"),
    "scrambled": (lambda c: c[:3000] + b"\xff\xd0" * 9 + c[3018:], "Corrupt JPEG"),
    "grey": (lambda c: jpeg(90, 160, 1), r"\(90, 160\) uint8, not .*uint8"),
    "small": (lambda c: jpeg(45, 80), "is 80 x 45, the tables say 160 x 90"),
}


@pytest.mark.parametrize(("damage", "says"), IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_images(tmp_path, damage, says, workers, capfd):
    if damage is not None:
        (tmp_path / "a.jpg").write_bytes(damage(jpeg(90, 160)))
    found = troubles(check_images(str(tmp_path), [("a.jpg", (90, 160))], True, workers))
    assert [finding.level for finding in found] == (["broken"] if says else [])
    if says:
        assert re.search(says, found[0].what)
        assert found[0].where == str(tmp_path / "a.jpg")
    assert capfd.readouterr().err == ""


def test_only_a_few_images_are_decoded_unless_deep(tmp_path):
    content = jpeg(9, 16)
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_bytes(content if i != 9 else b"")
    images = [(f"{i}.jpg", (9, 16)) for i in range(20)]
    (finding,) = check_images(str(tmp_path), images)
    assert "12 of 20 decoded" in finding.what
    assert len(troubles(check_images(str(tmp_path), images, deep=True))) == 1


def test_many_damaged_images_are_counted(tmp_path):
    images = [(f"{i}.jpg", (9, 16)) for i in range(15)]
    found = troubles(check_images(str(tmp_path), images, deep=True))
    assert len(found) == 11
    assert "5 more are damaged" in found[-1].what


# Info files


@pytest.fixture
def edit(data_root, replace):
    """Change the info file of val; returns the findings about it."""

    def edit(change, label="data.val"):
        path = data_root / "synthetic_infos_temporal_val.pkl"
        content = pickle.loads(path.read_bytes())
        change(content)
        replace(path, pickle.dumps(content))
        return check_info_files({label: str(path)}, str(data_root))

    return edit


def change_infos(change):
    def change_content(content):
        for info in content["infos"]:
            change(info)

    return change_content


def absolute_paths(info):
    for camera in info["cams"].values():
        camera["data_path"] = "/other/machine/" + camera["data_path"]


def gone_paths(info):
    for camera in info["cams"].values():
        camera["data_path"] = camera["data_path"].replace("samples/", "samples/gone/")


def old_boxes(content):
    content["metadata"]["box_convention"] = "wlh_negyaw"
    for info in content["infos"]:
        info["gt_boxes"] = new_to_old_boxes(info["gt_boxes"])


@pytest.mark.parametrize(
    ("change", "level", "says"),
    [
        (
            lambda c: c["metadata"].pop("box_convention"),
            "warning",
            "does not say its box convention",
        ),
        (lambda c: c["infos"].clear(), "broken", "holds no frames"),
        (lambda c: c["metadata"].update(version="v1.0-trainval"), "broken", "no .*/v1.0-trainval"),
        (lambda c: c["metadata"].update(split="test"), "broken", "split 'test' of version"),
        (lambda c: c["metadata"].update(split="train"), "warning", "is of the split train"),
        (
            change_infos(lambda i: i.update(token=i["token"][::-1])),
            "broken",
            "4 of 4 samples are not",
        ),
        (
            change_infos(lambda i: i.pop("can_bus_motion_after")),
            "warning",
            "not written by this proj",
        ),
        (change_infos(lambda i: i.pop("gt_attributes")), "warning", "evaluation reads the tables"),
        (lambda c: c["metadata"].pop("samples_in_split"), "warning", "evaluation reads the tables"),
        (change_infos(absolute_paths), "warning", "of another machine.*found below"),
        (
            change_infos(lambda i: i["cams"]["CAM_BACK"].update(data_path=3)),
            "broken",
            "synthetic_infos_temporal_val.pkl: .*CAM_BACK.data_path of frame 0 .* write the file again",
        ),
        (
            change_infos(lambda i: i.update(can_bus=None)),
            "broken",
            "synthetic_infos_temporal_val.pkl: can_bus of frame 0 .* write the file again",
        ),
        (
            change_infos(lambda i: i.pop("valid_flag")),
            "warning",
            "synthetic_infos_temporal_val.pkl: 4 of 4 frames have no valid_flag",
        ),
        (
            change_infos(lambda i: i["gt_boxes"].__setitem__((..., 6), i["gt_boxes"][:, 6] + 3)),
            "broken",
            "point 17. degrees away from the velocities",
        ),
        (change_infos(gone_paths), "broken", "24 of 24 images do not exist.*samples/gone"),
    ],
)
def test_info_files(edit, change, level, says):
    (finding,) = troubles(edit(change))
    assert finding.level == level
    assert re.search(says, finding.line())


def test_whole_info_files(whole_root):
    files = {
        f"data.{split}": str(whole_root / f"synthetic_infos_temporal_{split}.pkl")
        for split in ("train", "val")
    }
    findings = check_info_files(files, str(whole_root))
    assert troubles(findings) == []
    assert "4 frames of v1.0-mini train" in findings[0].what


def test_old_boxes_are_reported(edit):
    findings = edit(old_boxes)
    assert troubles(findings) == []
    assert any("wlh_negyaw and are converted" in finding.what for finding in findings)


def test_unreadable_info_files_do_not_stop_the_others(whole_root, tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"cos\nsystem\n.")
    files = {
        "data.train": str(tmp_path / "gone.pkl"),
        "data.val": str(tmp_path / "bad.pkl"),
        "data.test": str(whole_root / "synthetic_infos_temporal_val.pkl"),
    }
    gone, bad, good = check_info_files(files, str(whole_root))
    assert "gone.pkl does not exist" in gone.what
    assert "os.system" in bad.what
    assert good.level == "ok"
