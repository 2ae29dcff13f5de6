"""Configs with mistakes, and the memory that training needs."""

import gc
import re
from pathlib import Path

import pytest
import torch

from projects.bevformer.doctor.config import check_config, info_files_of, read_config
from projects.bevformer.engine.memory import OVERHEAD_MIB, TRAINING_MIB, training_mib

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = CONFIGS.with_name("data") / "demo" / "bevformer_demo.pth"


def troubles(findings):
    return [finding for finding in findings if finding.level != "ok"]


@pytest.fixture
def read(whole_root):
    """Reads configs/demo.py with options for the synthetic data set."""

    def read(**options):
        files = {"train": "train", "val": "val", "test": "val"}
        paths = {
            f"data.{split}.ann_file": str(whole_root / f"synthetic_infos_temporal_{part}.pkl")
            for split, part in files.items()
        }
        options = {key.replace("__", "."): value for key, value in options.items()}
        return read_config(
            CONFIGS / "demo.py", {**paths, "load_from": None, **options}, str(whole_root)
        )

    return read


def test_a_good_config(read):
    cfg, findings = read()
    assert troubles(findings) == []
    assert list(info_files_of(cfg)) == ["data.train", "data.val"]
    findings = check_config(cfg)
    assert troubles(findings) == []
    assert any("million parameters" in finding.what for finding in findings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "does not exist"),
        ("data = dict(", "cannot be read"),
        ("_base_ = ['./gone.py']", "gone.py"),
        ("model = dict(type='A')", "data"),
        ("1 / 0", "ZeroDivisionError"),
        ("data = dict(train=dict(), val=dict(), test=dict())", "has no ann_file"),
    ],
)
def test_a_config_that_cannot_be_read(tmp_path, text, says):
    path = tmp_path / "broken.py"
    if text is not None:
        path.write_text(text)
    cfg, (finding,) = read_config(path)
    gc.collect()  # in Python 3.11, if that happens inside the next ast.parse, it raises SystemError
    assert cfg is None
    assert finding.level == "broken"
    assert says in finding.line()


@pytest.mark.parametrize(
    ("options", "level", "where", "says"),
    [
        (dict(load_from="gone.pth"), "broken", "load_from", "gone.pth does not exist"),
        (dict(resume_from=str(DEMO)), "broken", "resume_from", "holds no optimizer state, so it cannot"),
        (dict(load_from=__file__), "broken", "load_from", "cannot be read"),
        (dict(load_from="https://x/a.pth"), "warning", "load_from", "is downloaded"),
        (dict(load_from=str(CONFIGS)), "broken", "load_from", "is a folder: name one of its files"),
        (dict(model__pretrained=dict(img="gone.pth")), "broken", "model.pretrained.img", "gone.pth"),
        (dict(model__pretrained="gone.pth"), "broken", "model.pretrained", "gone.pth"),
        (
            dict(model__img_neck__init_cfg=[dict(type="Pretrained", checkpoint="gone.pth")]),
            "broken", "model.img_neck.init_cfg.0.checkpoint", "gone.pth does not exist",
        ),
        (
            dict(data__train__type="NuScenes"), "broken", "data.train",
            "NuScenes is not in the dataset registry",
        ),
        (
            dict(data__val__queue_length=0), "broken", "data.val.queue_length", "is 0: it must be a",
        ),
        (
            dict(data__test__classes=["car"]), "broken", "data.test.classes",
            r"is \['car'\], data\.train\.classes is \['car', 'truck', ",
        ),
        (
            dict(data__train__pipeline=[dict(type="RandomFlip3D")]), "broken", "data.train",
            "pipeline step RandomFlip3D",
        ),
        (
            dict(model__pts_bbox_head__num_classes=3), "broken",
            "model.pts_bbox_head.num_classes", r"is 3, len\(data\.train\.classes\) is 10",
        ),
        (
            dict(optimizer__paramwise_cfg=dict(custom_keys=dict(img_bone=dict(lr_mult=0.1)))),
            "broken", "config", "has 'img_bone', which is in the name of no parameter",
        ),
        (
            dict(model__img_neck__type="FNP"), "broken", "config", "FNP is not in the",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_found(read, options, level, where, says):
    cfg, readable = read(**options)
    assert troubles(readable) == []
    found = troubles(check_config(cfg))
    assert (found[0].level, found[0].where) == (level, where)
    assert re.search(says, found[0].line())


def test_weights_that_can_be_read_and_fit_or_not(read, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"img_backbone.conv1.weight": torch.zeros(48, 3, 7, 7)}, path)
    cfg, _ = read(load_from=str(path))
    findings = check_config(cfg)
    assert troubles(findings) == []
    assert any("has 1 of " in finding.line() for finding in findings)
    torch.save({"cls.weight": torch.zeros(1)}, path)
    (finding,) = troubles(check_config(cfg))
    assert (finding.level, finding.where) == ("broken", "load_from")
    assert "no weight that fits" in finding.line()


def test_memory(read):
    base, _ = read_config(CONFIGS / "config.py")
    plain, frugal = (TRAINING_MIB[101, 200, 6][key] for key in ((False,) * 3, (True,) * 3))
    assert training_mib(base) == plain + OVERHEAD_MIB
    base.data.samples_per_gpu = 2
    assert training_mib(base) == 2 * plain + OVERHEAD_MIB
    assert training_mib(read_config(CONFIGS / "config_bf16.py")[0]) == frugal + OVERHEAD_MIB
    for name in ("tiny", "small", "base"):
        cfg, _ = read_config(CONFIGS / "bevformer" / f"bevformer_{name}.py")
        assert training_mib(cfg) is not None, name
    assert training_mib(read()[0]) is None


def test_memory_is_compared_with_the_gpu(read, monkeypatch):
    cfg, _ = read()
    monkeypatch.setattr("projects.bevformer.engine.memory.training_mib", lambda cfg: 20_480)
    (small,) = troubles(check_config(cfg, gpu_mib=16_384))
    assert (small.level, small.where) == ("broken", "memory")
    assert "about 20.0 GiB" in small.what
    assert "this GPU has 16.0 GiB free" in small.what
    assert "with_cp=True" in small.remedy
    assert troubles(check_config(cfg, gpu_mib=24_000)) == []
    assert any("no GPU here" in finding.what for finding in check_config(cfg))


def test_shared_memory_is_compared_with_the_batches(read):
    cfg, _ = read(data__workers_per_gpu=3, data__samples_per_gpu=2)
    frames, height, width = 3, 112, 208
    sample_mib = frames * 6 * 3 * height * width * 4 / 2**20  # float32 images
    needed = 2 * 3 * 2 * 2 * sample_mib  # batches a worker, workers, processes, samples
    (finding,) = troubles(check_config(cfg, shm_mib=int(needed), processes=2))
    assert (finding.level, finding.where) == ("warning", "/dev/shm")
    assert re.search(r"12 batches of 2 x .*--shm-size=16g or --ipc=host", finding.line())
    assert int(re.search(r"up to (\d+) MiB", finding.what).group(1)) == pytest.approx(
        needed, rel=0.01
    )
    assert troubles(check_config(cfg, shm_mib=int(needed * 1.01) + 1, processes=2)) == []
    cfg.data.workers_per_gpu = 0
    assert troubles(check_config(cfg, shm_mib=1)) == []
