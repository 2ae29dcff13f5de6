"""Info files of the synthetic scenes, as tools/create_data.py writes them."""

from types import SimpleNamespace

import mmcv
import pytest
from tool_runs import data_options, run


@pytest.fixture(scope="session")
def synthetic_infos(synthetic_root, tmp_path_factory):
    """Info files of the two synthetic scenes.

    Attributes:
        data_root: folder of the pictures.
        train, val: info file of one scene each, four key frames.
        both: the frames of both scenes in one file.
        options: config overrides, train on `train` and evaluate `val` from random weights.
        two_scenes: the same, train on and evaluate `both`.
    """
    out_dir = tmp_path_factory.mktemp("infos")
    run(
        "tools/create_data.py", "nuscenes", "--root-path", synthetic_root, "--out-dir", out_dir,
        "--extra-tag", "synthetic", "--version", "v1.0-mini", "--canbus", synthetic_root,
    )  # fmt: skip
    train, val = (out_dir / f"synthetic_infos_temporal_{part}.pkl" for part in ("train", "val"))
    content, more = mmcv.load(str(train)), mmcv.load(str(val))
    both = out_dir / "both_scenes.pkl"
    mmcv.dump({**content, "infos": content["infos"] + more["infos"]}, str(both))
    return SimpleNamespace(
        data_root=synthetic_root,
        train=train,
        val=val,
        both=both,
        options={**data_options(synthetic_root, train, val), "load_from": None},
        two_scenes={**data_options(synthetic_root, both, both), "load_from": None},
    )
