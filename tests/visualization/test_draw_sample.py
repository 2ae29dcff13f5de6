"""The two files of a sample."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from projects.bevformer.visualization import draw_cameras, draw_sample

CAR = (0.0, 20.0, 0.0, 4.0, 2.0, 1.5, 0.0, 3.0, 0.0)


def test_writes_both_pictures(sample, make_boxes, tmp_path):
    info, data_root = sample
    predictions, ground_truth = make_boxes(CAR, scores=[0.8]), make_boxes(CAR)
    out_dir = tmp_path / "new" / "folder"
    bev_path, camera_path = draw_sample(
        str(out_dir), info, predictions, ground_truth, data_root, score_threshold=0.5
    )
    assert bev_path == out_dir / "0123456789abcdef_bev.png"
    assert camera_path == out_dir / "0123456789abcdef_camera.png"
    assert sorted(out_dir.iterdir()) == [bev_path, camera_path]
    bev = cv2.imread(str(bev_path))
    assert bev.shape[0] > 1000
    assert bev.shape[1] > 1000
    expected = draw_cameras(info, predictions, ground_truth, data_root, 0.5)
    np.testing.assert_array_equal(cv2.imread(str(camera_path)), expected)


@pytest.mark.parametrize("token", ["../../outside", "{folder}/absolute", "a/b", "nul\0", "x" * 300])
def test_no_token_leads_out_of_the_folder(sample, tmp_path, token):
    info, data_root = sample
    out_dir = tmp_path / "a" / "b" / "out"
    info = {**info, "token": token.format(folder=tmp_path)}
    before = set(tmp_path.rglob("*"))
    paths = draw_sample(out_dir, info, None, None, data_root)
    made = {out_dir, *out_dir.parents} - set(tmp_path.parents) - {tmp_path}
    assert set(tmp_path.rglob("*")) - before == {*made, *paths}
    assert {path.parent for path in paths} == {out_dir}


def test_a_link_in_the_place_of_a_picture_is_replaced(sample, tmp_path):
    info, data_root = sample
    (tmp_path / "mine").write_text("keep me")
    for end in ("bev", "camera"):
        (tmp_path / f"0123456789abcdef_{end}.png").symlink_to("mine")
    for path in draw_sample(tmp_path, info, None, None, data_root):
        assert not path.is_symlink()
    assert (tmp_path / "mine").read_text() == "keep me"


def test_names_are_drawn_as_they_are(sample, make_boxes, tmp_path):
    """Matplotlib would take what stands between two dollars for a formula."""
    info, data_root = sample
    info = {**info, "token": r"$\nonsense{$ \x07"}
    names = [r"$\bad$"]
    draw_sample(tmp_path / "out", info, None, make_boxes(CAR), data_root, class_names=names)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_lidar_file_changes_the_bev_only(sample, tmp_path):
    info, data_root = sample
    without = [
        path.read_bytes() for path in draw_sample(tmp_path / "a", info, None, None, data_root)
    ]
    lidar_path = Path(data_root) / info["lidar_path"]
    lidar_path.parent.mkdir(parents=True)
    np.full((200, 5), 15.0, dtype=np.float32).tofile(str(lidar_path))
    with_points = [
        path.read_bytes() for path in draw_sample(tmp_path / "b", info, None, None, data_root)
    ]
    assert with_points[0] != without[0]
    assert with_points[1] == without[1]


def test_a_missing_image_leaves_no_picture(sample, tmp_path):
    info, data_root = sample
    (Path(data_root) / info["cams"]["CAM_FRONT"]["data_path"]).unlink()
    with pytest.raises(FileNotFoundError, match="CAM_FRONT"):
        draw_sample(tmp_path / "out", info, None, None, data_root)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("size", [4 * 5 + 4, 4 * 5 + 1])
def test_a_lidar_file_that_is_cut_off_is_named(sample, tmp_path, size):
    info, data_root = sample
    lidar_path = Path(data_root) / info["lidar_path"]
    lidar_path.parent.mkdir(parents=True)
    lidar_path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=r"lidar file .*none\.bin is cut off"):
        draw_sample(tmp_path / "out", info, None, None, data_root)
    assert list((tmp_path / "out").iterdir()) == []


def test_paths_may_include_data_root(sample, tmp_path):
    info, data_root = sample
    for camera in info["cams"].values():
        camera["data_path"] = str(Path(data_root) / camera["data_path"])
    draw_sample(tmp_path / "absolute", info, None, None, data_root)
