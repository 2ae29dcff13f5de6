"""Resumed runs: which checkpoint, which options, where in the schedule, and the best score."""

import errno
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dummy_task import DummyDetector, summary
from mmcv.runner import TextLoggerHook

from projects.bevformer.datasets.evaluators import DatasetEvaluator
from projects.bevformer.engine import resume as module
from projects.bevformer.engine.best import BestCheckpoint
from projects.bevformer.engine.checkpoint import load_checkpoint, save_checkpoint
from projects.bevformer.engine.resume import (
    checkpoint_numbers,
    find_latest_checkpoint,
    read_on_all_ranks,
)
from projects.bevformer.engine.train import _log_short_epochs
from projects.bevformer.files import writing

LOGGER = logging.getLogger("test")


def epochs(number):
    return {"total_epochs": number, "runner.max_epochs": number}


def log_of(work_dir):
    return "".join(path.read_text() for path in sorted(work_dir.glob("*.log")))


def rates(work_dir, first_epoch=1):
    records = [
        json.loads(line)
        for path in sorted(work_dir.glob("*.log.json"))
        for line in path.read_text().splitlines()
    ]
    return [r["lr"] for r in records if r.get("mode") == "train" and r["epoch"] >= first_epoch]


@pytest.mark.parametrize("policy", ["CosineAnnealing", None])
def test_options_of_the_optimizer_are_those_of_the_config(run, policy):
    options = {} if policy else {"lr_config": None}
    first = run(options, validate=False) / "epoch_1.pth"
    new = {
        **options,
        "optimizer.lr": 2e-3,
        "optimizer.weight_decay": 0.5,
        "optimizer.betas": (0.8, 0.99),
        "optimizer.paramwise_cfg.custom_keys.img_backbone.lr_mult": 0.5,
    }
    whole = run(new, work_dir="whole", validate=False)
    resumed = run({**new, "resume_from": str(first)}, work_dir="b", validate=False)
    assert rates(resumed) == rates(whole, first_epoch=2)
    backbone, group = load_checkpoint(resumed / "epoch_2.pth")["optimizer"]["param_groups"]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.5, (0.8, 0.99))
    assert backbone["lr"] == pytest.approx(group["lr"] * 0.5)
    (line,) = [line for line in log_of(resumed).splitlines() if "the options of the config" in line]
    assert "; lr 0.01 -> 0.002" in line
    assert "weight_decay 0.01 -> 0.5" in line
    assert "betas (0.9, 0.999) -> (0.8, 0.99)" in line
    assert "the options of the config" not in log_of(
        run({**options, "resume_from": str(first)}, work_dir="c", validate=False)
    )


def test_a_run_of_epochs_resumes_one_of_iterations_and_back(run):
    """Five iterations an epoch."""
    options = {"lr_config": None}
    work_dir = run(options, validate=False, max_iters=7)
    options["resume_from"] = str(work_dir / "iter_7.pth")
    resumed = run({**options, **epochs(3)}, work_dir="b", validate=False)
    log = log_of(resumed)
    assert "iter_7.pth: epoch 1, iteration 7" in log
    assert "Epoch [2][3/5]" in log
    assert "Epoch [2][2/5]" not in log
    options["resume_from"] = str(resumed / "epoch_2.pth")
    again = run(options, work_dir="c", validate=False, max_iters=11)
    assert load_checkpoint(again / "iter_11.pth")["meta"]["iter"] == 11
    assert "epoch_2.pth: epoch 2, iteration 10" in log_of(again)


def test_another_optimizer_is_refused(run):
    first = run(validate=False) / "epoch_1.pth"
    options = {"resume_from": str(first), "optimizer.type": "SGD"}
    with pytest.raises(ValueError, match=r"epoch_1\.pth: .*optimizer \(AdamW\) than SGD"):
        run(options, work_dir="b", validate=False)


@pytest.mark.parametrize(("length", "old_file"), [({}, False), ({"max_iters": 10}, True)])
def test_the_schedule_goes_by_the_samples_seen(run, tmp_path, length, old_file):
    """Four samples an iteration before, as of two processes, and one now; ten samples an epoch."""
    data = {"data.train.frames_per_scene": [8], "lr_config.by_epoch": False}
    before = {**data, "data.samples_per_gpu": 4}
    half = {"max_iters": 2} if length else {}
    work_dir = run({**before, **epochs(1)}, validate=False, **half)
    path = work_dir / ("iter_2.pth" if length else "epoch_1.pth")
    now = {"data.samples_per_gpu": 1}
    if old_file:  # names the processes only
        checkpoint = torch.load(str(path))
        del checkpoint["meta"]["total_batch"]
        checkpoint["meta"]["world_size"] = 2
        path = tmp_path / path.name
        torch.save(checkpoint, str(path))
        now = {"data.samples_per_gpu": 2}
    now = {**data, **now}
    whole = run(now, work_dir="whole", validate=False, **length)
    resumed = run({**now, "resume_from": str(path)}, work_dir="b", validate=False, **length)
    done = 8 // now["data.samples_per_gpu"]
    assert rates(resumed) == rates(whole)[done:]
    log = log_of(resumed)
    batch = now["data.samples_per_gpu"]
    assert f"2 iterations with a batch of 4 are {done} of this run, with a batch of {batch}" in log


def test_auto_resume_takes_the_same_kind_of_run(run):
    work_dir = run({"lr_config": None}, validate=False, max_iters=6)
    run(epochs(3), validate=False)
    run(epochs(4), validate=False, auto_resume=True)
    log = log_of(work_dir)
    assert f"resumed {work_dir}/epoch_3.pth" in log
    assert "passes over iter_6.pth: of another run than epoch_3.pth" in log
    run({"lr_config": None}, validate=False, max_iters=7, auto_resume=True)
    assert f"resumed {work_dir}/iter_6.pth" in log_of(work_dir)


def test_auto_resume_prefers_what_latest_names(run, caplog):
    """A new training in the work dir of a longer one."""
    work_dir = run(epochs(3), validate=False)
    torch.save({"state_dict": {}}, str(work_dir / "best_NDS_epoch_9.pth"))
    run(epochs(2), validate=False)
    run(epochs(3), validate=False, auto_resume=True)
    log = log_of(work_dir)
    assert f"resumed {work_dir}/epoch_2.pth" in log
    assert "passes over epoch_3.pth: of another run than epoch_2.pth" in log


def test_auto_resume_follows_names_and_folders_of_the_config(run, tmp_path):
    options = {"checkpoint_config.filename_tmpl": "ckpt_{}.pth", "checkpoint_config.out_dir": None}
    options["checkpoint_config.out_dir"] = str(tmp_path / "disk")
    work_dir = run(options, validate=False)
    assert (tmp_path / "disk" / "work" / "ckpt_2.pth").exists()
    os.remove(tmp_path / "disk" / "work" / "latest.pth")
    run({**options, **epochs(3)}, validate=False, auto_resume=True)
    assert f"resumed {tmp_path}/disk/work/ckpt_2.pth" in log_of(work_dir)


def test_auto_resume_without_links_goes_by_numbers(run):
    options = {"checkpoint_config.create_symlink": False}
    work_dir = run(options, validate=False)
    os.symlink("epoch_1.pth", work_dir / "latest.pth")  # of an earlier run
    run({**options, **epochs(3)}, validate=False, auto_resume=True)
    assert f"resumed {work_dir}/epoch_2.pth" in log_of(work_dir)


def saved(folder, name, run="a", **meta):
    meta = {"epoch": 0, "run": run, "counted_in": "epoch", **meta}
    save_checkpoint(folder / name, DummyDetector(), meta=meta)


def flip_a_bit(path):
    """Of a weight, which nothing but the checksum of the archive shows."""
    content = bytearray(path.read_bytes())
    place = content.find(load_checkpoint(path)["state_dict"]["head.weight"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
        lambda path: path.write_bytes(b""),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.unlink(),
        lambda path: torch.save({"state_dict": {}, "meta": {}}, str(path)),
        lambda path: saved(path.parent, path.name, world_size=0),
    ],
)
@pytest.mark.parametrize("links", ["symbolic", "text", "none"])
def test_auto_resume_takes_the_one_before_a_broken_one(tmp_path, caplog, damage, links):
    for number in (1, 2, 3):
        saved(tmp_path, f"epoch_{number}.pth", epoch=number)
    damage(tmp_path / "epoch_3.pth")
    if links == "symbolic":
        os.symlink("epoch_3.pth", tmp_path / "latest.pth")
    elif links == "text":
        (tmp_path / "latest.pth").write_text("epoch_3.pth\n")
    assert find_latest_checkpoint(tmp_path, LOGGER) == tmp_path / "epoch_2.pth"
    skipped = (tmp_path / "epoch_3.pth").exists()
    assert ("--auto-resume skips epoch_3.pth" in caplog.text) == skipped


def test_auto_resume_follows_a_text_file_and_takes_a_copy(tmp_path):
    for number in (1, 2, 3):
        saved(tmp_path, f"epoch_{number}.pth", epoch=number)
    (tmp_path / "latest.pth").write_text("epoch_2.pth\n")
    assert find_latest_checkpoint(tmp_path, LOGGER).name == "epoch_2.pth"
    assert load_checkpoint(tmp_path / "latest.pth")["meta"]["epoch"] == 2
    os.rename(tmp_path / "epoch_2.pth", tmp_path / "latest.pth")
    for number in (1, 3):
        os.remove(tmp_path / f"epoch_{number}.pth")
    for links_latest in (True, False):
        found = find_latest_checkpoint(tmp_path, LOGGER, links_latest=links_latest)
        assert found == tmp_path / "latest.pth"


def test_files_of_a_template_are_numbered(tmp_path):
    for name in ("at_007.pth", "at_12.pth", "at_x.pth", "bat_1.pth", "at_1.pth.old"):
        (tmp_path / name).touch()
    numbers = {path.name: n for path, n in checkpoint_numbers(tmp_path, "at_{:03d}.pth").items()}
    assert numbers == {"at_007.pth": 7, "at_12.pth": 12}
    assert checkpoint_numbers(tmp_path, "at_007.pth") == {}


@pytest.mark.parametrize(
    ("interrupted", "expected"),
    [
        (dict(iter=12), "interrupted.pth"),
        (dict(iter=10), "epoch_2.pth"),
        (dict(iter=8), "epoch_2.pth"),
        (dict(iter=12, counted_in="iter"), "epoch_2.pth"),
        (dict(iter=12, run="b"), "epoch_2.pth"),
        (dict(iter=3, run="b", later=True), "interrupted.pth"),
        (None, "epoch_2.pth"),
    ],
)
def test_auto_resume_takes_an_interrupted_run_that_is_ahead(
    tmp_path, caplog, interrupted, expected
):
    """An older one of another run is not taken; of the runs in a folder the last one goes on."""
    caplog.set_level(logging.INFO)
    folder = tmp_path / "disk"
    folder.mkdir()
    saved(folder, "epoch_2.pth", epoch=2, iter=10)
    options = dict(interrupted or {})
    later = options.pop("later", False)
    saved(tmp_path, "interrupted.pth", epoch=1, interrupted="SIGTERM", **options)
    path = tmp_path / "interrupted.pth"
    checkpoint = torch.load(str(path))
    checkpoint["meta"]["time"] = f"Mon Jan  5 10:00:00 {2040 if later else 2020}"
    torch.save(checkpoint, str(path))
    if interrupted is None:
        path.write_text("broken")
    assert find_latest_checkpoint(folder, LOGGER, interrupted=path).name == expected
    passed = "passes over" in caplog.text
    assert passed == ("run" in options or "counted_in" in options)
    assert ("skips interrupted.pth" in caplog.text) == (interrupted is None)


def test_an_interrupted_run_is_resumed_before_its_first_checkpoint(tmp_path):
    saved(tmp_path, "interrupted.pth", iter=3)
    assert find_latest_checkpoint(tmp_path, LOGGER) == tmp_path / "interrupted.pth"


def test_a_run_without_links_is_resumed(run, monkeypatch):
    def no_links(*names):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "symlink", no_links)
    monkeypatch.setattr(writing, "_said", set())  # once per process
    work_dir = run(validate=False)
    assert (work_dir / "latest.pth").read_text() == "epoch_2.pth\n"
    assert log_of(work_dir).count("has no symbolic links (Function not implemented)") == 1
    run({**epochs(3), "resume_from": str(work_dir / "latest.pth")}, validate=False)
    assert (work_dir / "epoch_3.pth").exists()
    run(epochs(4), validate=False, auto_resume=True)
    assert f"resumed {work_dir}/epoch_3.pth" in log_of(work_dir)


def test_a_finished_run_says_so(run):
    work_dir = run(validate=False)
    run(validate=False, auto_resume=True)
    assert "nothing left to train: 2 of 2 epochs are done" in log_of(work_dir)


def test_checkpoints_within_an_epoch(run):
    """Five iterations an epoch."""
    within = {"checkpoint_config": dict(interval=2, by_epoch=False, max_keep_ckpts=2)}
    work_dir = run(within, validate=False)
    names = sorted(path.name for path in work_dir.glob("*_*.pth"))
    assert names == ["iter_10.pth", "iter_8.pth"]
    assert os.readlink(work_dir / "latest.pth") == "iter_10.pth"
    metas = [load_checkpoint(work_dir / name)["meta"] for name in names]
    keys = ("epoch", "iter", "iter_in_epoch")
    assert [tuple(meta[key] for key in keys) for meta in metas] == [(2, 10, 0), (1, 8, 3)]
    resumed = run({"resume_from": str(work_dir / "iter_8.pth")}, work_dir="b", validate=False)
    assert "iter_8.pth: epoch 1, iteration 8" in log_of(resumed)
    assert len(rates(resumed)) == 2
    (work_dir / "latest.pth").unlink()
    run({**within, **epochs(3)}, validate=False, auto_resume=True)
    assert f"resumed {work_dir}/iter_10.pth: epoch 2, iteration 10" in log_of(work_dir)


def test_epochs_of_a_run_of_iterations_are_refused(run):
    with pytest.raises(ValueError, match="by_epoch is True, but runner.type is IterBasedRunner"):
        run({"checkpoint_config.by_epoch": True, "runner.type": "IterBasedRunner"}, validate=False)


@pytest.mark.parametrize(
    ("options", "length", "expected"),
    [
        ({"log_config.interval": 50}, {}, [5, 5]),
        ({"log_config.interval": 5}, {}, [5, 5]),
        ({"log_config.interval": 3}, {}, [3, 3]),
        ({"log_config.interval": 4}, {"max_iters": 3}, [3]),
    ],
)
def test_an_epoch_shorter_than_the_log_interval_is_logged(run, options, length, expected):
    work_dir = run(options, **length)
    (path,) = work_dir.glob("*.log.json")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    training = [r for r in records if r.get("mode") == "train"]
    assert [r["iter"] for r in training] == expected
    assert {"loss", "lr", "time"} <= training[0].keys()
    assert log_of(work_dir).count("grad_norm: ") == len(expected)
    said = "each epoch has 5 iterations, before log_config.interval" in log_of(work_dir)
    assert said == (options["log_config.interval"] == 50)


@pytest.mark.parametrize(
    ("done", "max_iters", "interval", "expected"),
    [(0, 3, 50, 3), (51, 60, 50, 60), (49, 60, 50, 50), (0, 100, 50, 50)],
)
def test_the_last_iterations_of_a_run_are_logged(done, max_iters, interval, expected):
    hook = TextLoggerHook(interval=interval, by_epoch=False)
    runner = SimpleNamespace(counts_epochs=False, iter=done, max_iters=max_iters, hooks=[hook])
    runner.epoch_length = 5
    _log_short_epochs(runner, LOGGER)
    assert hook.interval == expected


class Scores:
    """NDS by name of the epoch, or an error in place of one evaluation."""

    def __init__(self, monkeypatch):
        self.of = {}
        self.fails = set()
        self.made = []
        monkeypatch.setattr(DatasetEvaluator, "score", self.score)

    def score(self, results, folder, metric):
        name = Path(folder).name
        self.made.append(name)
        if name in self.fails:
            self.fails.remove(name)
            raise KeyboardInterrupt
        Path(folder).mkdir(parents=True, exist_ok=True)
        content = summary(self.of[name])
        Path(folder, "metrics_summary.json").write_text(json.dumps(content))
        return content


@pytest.fixture
def scores(monkeypatch):
    return Scores(monkeypatch)


BEST = {"evaluation.save_best": "NDS"}


def best_files(work_dir):
    return sorted(path.name for path in work_dir.glob("best_*.pth"))


def stop_in(monkeypatch, owner, name, is_meant=lambda *arguments: True):
    """Let the next call of a method that is meant end in Ctrl-C instead."""
    original = getattr(owner, name)

    def stopped(*arguments, **options):
        if not is_meant(*arguments):
            return original(*arguments, **options)
        monkeypatch.setattr(owner, name, original)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, stopped)


@pytest.mark.parametrize("stop", ["evaluation", "best", "removal", "end", "no validation"])
def test_the_best_score_survives_a_stop(run, scores, monkeypatch, stop):
    scores.of = {"epoch_1": 0.6, "epoch_2": 0.9, "epoch_3": 0.7, "epoch_4": float("nan")}
    options = BEST
    if stop == "evaluation":
        scores.fails = {"epoch_2"}
    elif stop == "removal":  # the new best file is there, the old one too
        run({**options, **epochs(1)})
        stop_in(monkeypatch, Path, "unlink", lambda path, *_, **__: path.name.startswith("best"))
    elif stop == "best":
        run({**options, **epochs(1)})
        stop_in(monkeypatch, BestCheckpoint, "keep")
    resumes = stop in ("removal", "best")
    if stop in ("end", "no validation"):
        run({**options, **epochs(2)})
    else:
        with pytest.raises(KeyboardInterrupt):
            run({**options, **epochs(4)}, auto_resume=resumes)
    if stop == "no validation":
        run({**options, **epochs(3)}, auto_resume=True, validate=False)
        del scores.of["epoch_3"]
    work_dir = run({**options, **epochs(4)}, auto_resume=True)
    assert best_files(work_dir) == ["best_NDS_epoch_2.pth"]
    meta = load_checkpoint(work_dir / "best_NDS_epoch_2.pth")["meta"]
    assert (meta["epoch"], meta["iter"]) == (2, 10)
    value = pytest.approx(scores.of["epoch_2"])
    assert meta["hook_msgs"]["best_score"] == value
    last = load_checkpoint(work_dir / "epoch_4.pth")["meta"]["hook_msgs"]
    assert (last["best_score"], last["best_ckpt"]) == (value, "best_NDS_epoch_2.pth")
    once = [name for name in scores.made if scores.made.count(name) == 1]
    repeated = {"evaluation": 1, "best": 1, "removal": 1}.get(stop, 0)
    assert len(scores.made) - len(once) == 2 * repeated
    assert ("was stopped before the evaluation of epoch_2" in log_of(work_dir)) == bool(repeated)


def test_a_lost_last_evaluation_is_made_without_training(run, scores):
    scores.of = {"epoch_1": 0.4, "epoch_2": 0.5}
    scores.fails = {"epoch_2"}
    with pytest.raises(KeyboardInterrupt):
        run(BEST)
    work_dir = run(BEST, auto_resume=True)
    assert best_files(work_dir) == ["best_NDS_epoch_2.pth"]
    assert json.loads((work_dir / "metrics_summary.json").read_text())["nd_score"] == 0.5
    run(BEST, auto_resume=True)
    assert scores.made == ["epoch_1", "epoch_2", "epoch_2"]


def test_the_best_of_a_run_of_iterations(run, scores):
    scores.of = {"iter_3": 0.4, "iter_6": 0.5}
    work_dir = run({**BEST, "lr_config": None}, max_iters=3)
    for path in work_dir.glob("*3.pth"):  # as older files
        checkpoint = torch.load(str(path))
        del checkpoint["meta"]["run"]
        torch.save(checkpoint, str(path))
    os.symlink(work_dir, work_dir.parent / "link")
    run({**BEST, "lr_config": None}, work_dir="link", max_iters=6, auto_resume=True)
    assert best_files(work_dir) == ["best_NDS_iter_6.pth"]


def test_the_best_of_another_run_or_metric_is_not_compared(run, scores):
    scores.of = {"epoch_1": 0.4, "epoch_2": 0.3}
    work_dir = run({**BEST, **epochs(1)}, seed=1)
    scores.of = {"epoch_1": 0.2, "epoch_2": 0.3}
    os.rename(work_dir / "best_NDS_epoch_1.pth", work_dir / "best_NDS_epoch_7.pth")
    run({**BEST, **epochs(1)}, seed=2)
    assert best_files(work_dir) == ["best_NDS_epoch_1.pth", "best_NDS_epoch_7.pth"]
    assert "best_NDS_epoch_7.pth: of another run, not compared" in log_of(work_dir)
    run({"evaluation.save_best": "mAP", **epochs(2)}, auto_resume=True)
    assert "best_mAP_epoch_2.pth" in best_files(work_dir)
    run({**BEST, **epochs(3), "evaluation.start": 9}, auto_resume=True)
    assert "best NDS so far 0.2000: best_NDS_epoch_1.pth" in log_of(work_dir)


def test_the_best_beside_a_resumed_checkpoint_of_another_folder(run, scores):
    scores.of = {"epoch_1": 0.4, "epoch_2": 0.3}
    first = run({**BEST, **epochs(1)})
    work_dir = run({**BEST, "resume_from": str(first / "epoch_1.pth")}, work_dir="b")
    assert best_files(work_dir) == []
    assert f"best NDS so far 0.4000: best_NDS_epoch_1.pth in {first}" in log_of(work_dir)
    assert best_files(first) == ["best_NDS_epoch_1.pth"]


@pytest.mark.parametrize(("rule", "better", "worse"), [("greater", 0.6, 0.4), ("less", 0.4, 0.6)])
def test_a_value_is_the_best_by_the_rule(rule, better, worse):
    best = BestCheckpoint("NDS", rule)
    assert best._improves(worse)
    best.score = 0.5
    assert best._improves(better)
    assert not any(best._improves(value) for value in (worse, 0.5, float("nan")))


def test_rules_are_greater_or_less():
    with pytest.raises(ValueError, match="evaluation.rule is 'max'"):
        BestCheckpoint("NDS", "max")


@pytest.fixture
def two_nodes(monkeypatch):
    """This process is rank 1, and what rank 0 has is given."""

    def two_nodes(first):
        monkeypatch.setattr(module, "get_rank", lambda: 1)
        monkeypatch.setattr(module, "all_gather", lambda own: [first(own), own])
        monkeypatch.setattr(module, "broadcast", lambda own: None)

    return two_nodes


def test_newer_checkpoints_of_another_node_are_not_passed_over(two_nodes, tmp_path):
    save_checkpoint(tmp_path / "epoch_3.pth", DummyDetector())
    cfg = {"work_dir": str(tmp_path)}
    cfg = type("Config", (dict,), {"work_dir": str(tmp_path)})(cfg)
    two_nodes(lambda own: (2, tmp_path / "epoch_2.pth", "first"))
    with pytest.raises(ValueError, match=r"rank 1 on .* has .*epoch_3\.pth, and rank 0 on first"):
        module.checkpoint_to_resume(cfg, True, LOGGER, counts_epochs=True)
    two_nodes(lambda own: (3, tmp_path / "epoch_3.pth", "first"))
    assert module.checkpoint_to_resume(cfg, True, LOGGER, counts_epochs=True) is None


def test_a_file_that_only_another_node_has_is_named(two_nodes, tmp_path):
    path = tmp_path / "a.pth"
    path.write_text("content")
    two_nodes(lambda own: (None, "first"))
    with pytest.raises(ValueError, match=r"a\.pth is on .* and not on first, where rank 0 runs"):
        read_on_all_ranks(Path.read_text, path, LOGGER)


def test_resumed_run_has_the_seed_of_its_checkpoint(run):
    options = {"checkpoint_config": {"interval": 1, "by_epoch": False}}
    whole = run(options, work_dir="whole", validate=False, seed=None)
    options["resume_from"] = str(whole / "iter_3.pth")
    again = run(options, work_dir="again", validate=False, seed=None)
    last, first = (load_checkpoint(folder / "iter_10.pth") for folder in (again, whole))
    assert last["meta"]["seed"] == first["meta"]["seed"]
    for name, value in first["state_dict"].items():
        assert torch.equal(last["state_dict"][name], value)
    other = run(options, work_dir="other", validate=False, seed=first["meta"]["seed"] + 1)
    assert "samples come in another order" in log_of(other)
    assert "samples come in another order" not in log_of(again)
