"""Folders and files for results are tried before the results are computed."""

import pytest

from projects.bevformer.files.writing import check_output, make_folder


def test_a_folder_is_made_and_left_empty(tmp_path):
    folder = make_folder(tmp_path / "a" / "b", "--out-dir")
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below", "nul\0", "/proc/none"])
def test_a_folder_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"--out-dir .* cannot be written \(.*choose another folder"):
        make_folder(f"{tmp_path}/{place}" if place[0] != "/" else place, "--out-dir")


def test_a_file_for_results(tmp_path):
    check_output(tmp_path / "new" / "a.pkl", "--out", ["config.py", None])
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(OSError, match=r"--out .*new is a folder: name a file"):
        check_output(tmp_path / "new", "--out")
    (tmp_path / "w.pkl").write_text("weights")
    (tmp_path / "link.pkl").symlink_to("w.pkl")
    for name in ("w.pkl", "link.pkl"):
        with pytest.raises(ValueError, match=r"--out .* would overwrite .*w\.pkl, which is read"):
            check_output(tmp_path / name, "--out", [tmp_path / "w.pkl"])
