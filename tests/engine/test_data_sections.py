"""Lists of data sets, lists of info files, and wrappers, in every place that reads `data`."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from mmcv import Config, ConfigDict

from projects.bevformer.datasets import TemporalNuScenesDataset  # noqa: F401
from projects.bevformer.engine.build import data_sets_inside
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.data_loading import build_test_dataset, build_train_dataset
from projects.bevformer.engine.data_sections import info_files, inner_sections, one_file_each
from projects.bevformer.engine.provenance import training_stamp
from projects.bevformer.engine.seed import seeded
from projects.bevformer.nuscenes.spec import CLASSES

A, B = ({"type": "D", "ann_file": f"{name}.pkl"} for name in "ab")


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        (A, ["data.train"]),
        ([A, B], ["data.train.0", "data.train.1"]),
        (dict(type="RepeatDataset", times=2, dataset=A), ["data.train.dataset"]),
        (
            dict(type="CBGSDataset", dataset=dict(type="ConcatDataset", datasets=[A, B])),
            ["data.train.dataset.datasets.0", "data.train.dataset.datasets.1"],
        ),
        (dict(type="OwnWrapper", colour=1, dataset=[A]), ["data.train.dataset.0"]),
    ],
)
def test_data_sets_of_a_section(section, keys):
    found = dict(inner_sections(ConfigDict(train=section).train, "data.train"))
    assert list(found) == keys
    assert [info_files(options) for options in found.values()] == [["a.pkl"], ["b.pkl"]][
        : len(keys)
    ]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (
            dict(type="CBGSDataset", dataset=A, ann_file="c.pkl", queue_length=2),
            "data.val is a CBGSDataset, which does not read ann_file, queue_length: .*"
            "into data.val.dataset ",
        ),
        (dict(type="RepeatDataset", times=2, dataset=[A, None]), "data.val.dataset.1 is None"),
        ([], r"data.val is \[\]"),
    ],
)
def test_what_would_be_dropped_is_refused(section, says):
    with pytest.raises(ValueError, match=says):
        list(inner_sections(section, "data.val"))


def test_each_info_file_is_a_data_set_of_its_own():
    both = {**A, "ann_file": ["a.pkl", "b.pkl"]}
    assert one_file_each(both) == [A, B]
    assert one_file_each({**A, "ann_file": ("a.pkl",)}) == A
    wrapped = dict(type="CBGSDataset", dataset=both)
    assert one_file_each(wrapped) == dict(type="CBGSDataset", dataset=[A, B])
    assert wrapped["dataset"] is both
    assert both["ann_file"] == ["a.pkl", "b.pkl"]


@pytest.fixture
def options(two_scenes, write_infos):
    """Options of the data sets of scene_a and scene_b, each with its own info file."""
    return [
        dict(
            type="TemporalNuScenesDataset",
            ann_file=write_infos(two_scenes[3 * i : 3 * i + 3], f"{i}.pkl"),
            data_root="root",
            pipeline=[],
            queue_length=3,
            classes=["car", "human.pedestrian.wheelchair"],
        )
        for i in range(2)
    ]


def build(train):
    return build_train_dataset(Config({"data": {"train": train}}))


def shapes(options):
    a, b = options
    both = {**a, "ann_file": [a["ann_file"], b["ann_file"]]}
    return {
        "list": options,
        "ann_file": both,
        "ConcatDataset": dict(type="ConcatDataset", datasets=options),
        "RepeatDataset": dict(type="RepeatDataset", times=2, dataset=both),
        "CBGSDataset": dict(type="CBGSDataset", dataset=options),
    }


@pytest.mark.parametrize(
    "shape", ["list", "ann_file", "ConcatDataset", "RepeatDataset", "CBGSDataset"]
)
def test_queues_stay_within_their_file(options, collect, shape):
    dataset = build(shapes(options)[shape])
    parts = data_sets_inside(dataset)
    for part in parts:
        part.pipeline = collect
    assert [part.data_infos[0]["scene_token"] for part in parts] == ["scene_a", "scene_b"]
    seen = set()
    for index in range(len(dataset)):
        with seeded(index):
            metas = dataset[index]["img_metas"].data.values()
        (scene,) = {meta["scene_token"] for meta in metas}
        seen.add(scene)
    assert seen == {"scene_a", "scene_b"}
    assert len(dataset) == (12 if shape in ("RepeatDataset", "CBGSDataset") else 6)


def test_class_balance_does_not_depend_on_the_process(options):
    drawn = []
    for seed in (1, 2):  # as --diff-seed gives each rank its own
        np.random.seed(seed)
        drawn.append(build(shapes(options)["CBGSDataset"]).sample_indices)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            dict(classes=["human.pedestrian.wheelchair", "car"]),
            "classes differ: .*car.* in .*0.pkl",
        ),
        (dict(classes=["car"]), "classes differ"),
        (dict(queue_length=2), "queue_length differ: 3 in .*0.pkl and 2 in .*1.pkl"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(options, change, says):
    options[1].update(change)
    with pytest.raises(ValueError, match=f"data.train joins data sets whose {says}"):
        build(options)


def test_cameras_of_joined_files_must_agree(options, make_info, write_infos):
    info = make_info()
    del info["cams"]["CAM_BACK"]
    options[1]["ann_file"] = write_infos([info], "five.pkl")
    with pytest.raises(ValueError, match="cameras differ: .*CAM_BACK.*and .*five.pkl"):
        build(options)


def test_class_without_objects_cannot_be_balanced(options):
    options[0]["classes"] = CLASSES
    with pytest.raises(ValueError, match="CBGSDataset, but some class has no object in .*0.pkl"):
        build(dict(type="CBGSDataset", dataset=options[0]))


@pytest.mark.parametrize("shape", ["list", "ann_file", "RepeatDataset"])
def test_only_one_file_is_evaluated(options, shape):
    cfg = Config({"data": {"val": shapes(options)[shape]}})
    with pytest.raises(ValueError, match="data.val joins or wraps data sets: .*data.val.ann_file"):
        build_test_dataset(cfg, "val")
    cfg.data.val = {**options[0], "ann_file": [options[0]["ann_file"]]}
    assert len(build_test_dataset(cfg, "val")) == 3


OFFICIAL = dict(can_bus_quaternion="official", can_bus_message="official")


def stamped(train):
    network = SimpleNamespace(pts_bbox_head=SimpleNamespace())
    return training_stamp(Config({"data": {"train": train}}), network)


def test_stamp_is_read_from_the_data_sets_inside(options):
    for part in options:
        part.update(OFFICIAL)
    for shape in shapes(options).values():
        assert OFFICIAL.items() <= stamped(shape).items()
    options[1]["can_bus_message"] = "same"
    with pytest.raises(
        ValueError, match="data.train.0.can_bus_message is 'official' and data.train.1"
    ):
        stamped(options)


def test_data_root_reaches_the_data_sets_inside(options, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    for name in ("0.pkl", "1.pkl"):
        (new / name).write_bytes(pickle.dumps({}))
    path = tmp_path / "config.py"
    for shape in shapes([{**o, "ann_file": f"old/{i}.pkl", "data_root": "old/"} for i, o in
                         enumerate(options)]).values():  # fmt: skip
        path.write_text(f"data = dict(train={shape!r}, val={options[0]!r})")
        cfg = load_config(path, data_root=new)
        inner = [part for _, part in inner_sections(cfg.data.train, "data.train")]
        assert {part.data_root for part in inner} == {str(new)}
        assert sum(map(info_files, inner), []) == [str(new / "0.pkl"), str(new / "1.pkl")]
        assert cfg.data.val.ann_file == options[0]["ann_file"]
