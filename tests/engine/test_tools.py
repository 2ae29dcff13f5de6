"""The command lines of tools/train.py and tools/eval.py, in this process."""

import importlib.util
import json
import os
import re

import mmcv
import pytest
import torch
from dummy_task import REPOSITORY, summary

from projects.bevformer.cli.arguments import chosen_gpu, parse_options
from projects.bevformer.datasets.evaluators import DatasetEvaluator
from projects.bevformer.engine import distributed, pictures


def load_tool(name):
    spec = importlib.util.spec_from_file_location(
        f"tool_{name}", REPOSITORY / "tools" / f"{name}.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.fixture(scope="module")
def train_tool():
    return load_tool("train")


@pytest.fixture(scope="module")
def eval_tool():
    return load_tool("eval")


@pytest.fixture
def call(monkeypatch, quick):
    """Run a tool with arguments, on the CPU unless they name a device."""

    def call(tool, *arguments):
        device = [] if "--device" in arguments else ["--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["tool.py", *map(str, arguments), *device])
        tool.main()

    return call


@pytest.fixture
def checkpoint(call, train_tool, config_path, tmp_path):
    call(train_tool, config_path, "--no-validate", "--seed", "0")
    return tmp_path / "work" / "epoch_2.pth"


def test_eval_prints_the_table_and_writes_the_files(
    call, eval_tool, config_path, checkpoint, capsys
):
    call(eval_tool, config_path, checkpoint)
    printed = capsys.readouterr().out
    assert "| mAP" in printed
    assert "traffic_cone" in printed
    results = checkpoint.parent / "eval_epoch_2"
    assert (results / "results_nusc.json").exists()
    assert "nd_score" in json.loads((results / "metrics_summary.json").read_text())


def test_evaluations_do_not_overwrite_each_other(
    call, eval_tool, config_path, checkpoint, tmp_path
):
    def new_results(*arguments):
        before = set(tmp_path.rglob("metrics_summary.json"))
        call(eval_tool, *arguments)
        return [path.parent.name for path in set(tmp_path.rglob("metrics_summary.json")) - before]

    link = checkpoint.with_name("latest.pth")
    other = config_path.with_name("other.py")
    other.write_text(config_path.read_text())
    assert new_results(config_path, link) == ["eval_epoch_2"]  # the epoch, not `latest`
    assert new_results(config_path, checkpoint) == []  # the same again
    assert new_results(other, checkpoint) == ["eval_epoch_2_2"]
    frames = ("--cfg-options", "data.test.frames_per_scene=[2,3]")
    assert new_results(config_path, checkpoint, *frames) == ["eval_epoch_2_3"]
    assert new_results(config_path, checkpoint.with_name("epoch_1.pth")) == ["eval_epoch_1"]
    os.utime(checkpoint, (1, 1))  # saved by another training
    assert new_results(config_path, checkpoint) == ["eval_epoch_2_4"]
    folder = checkpoint.parent / "eval_epoch_2"
    assert new_results(config_path, "--results", folder / "results_nusc.json") == [
        "eval_results_nusc"
    ]
    assert new_results(config_path, checkpoint, "--work-dir", tmp_path / "mine") == ["mine"]
    call(eval_tool, config_path, checkpoint.with_name("epoch_1.pth"), "--work-dir", folder)
    assert (folder / "dummy.py").exists()


def test_eval_out_format_only_and_prefix(call, eval_tool, config_path, checkpoint, tmp_path):
    call(
        eval_tool, config_path, checkpoint, "--format-only", "--out", tmp_path / "raw.pkl",
        "--eval-options", f"jsonfile_prefix={tmp_path}/elsewhere",
    )  # fmt: skip
    assert len(mmcv.load(str(tmp_path / "raw.pkl"))) == 9
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["results_nusc.json"]


def test_eval_of_a_result_file(call, eval_tool, config_path, checkpoint, tmp_path, capsys):
    call(eval_tool, config_path, checkpoint)
    results = checkpoint.parent / "eval_epoch_2"
    expected = json.loads((results / "metrics_summary.json").read_text())
    capsys.readouterr()
    call(
        eval_tool, config_path, "--results", results / "results_nusc.json",
        "--work-dir", tmp_path / "again",
    )  # fmt: skip
    assert f"{expected['nd_score']:.4f}" in capsys.readouterr().out
    again = json.loads((tmp_path / "again" / "metrics_summary.json").read_text())
    assert again["nd_score"] == pytest.approx(expected["nd_score"])


def test_process_group_is_destroyed_before_the_report(
    call, eval_tool, config_path, checkpoint, monkeypatch
):
    steps = []
    monkeypatch.setattr(distributed, "shut_down", lambda: steps.append("left"))
    monkeypatch.setattr(eval_tool, "report", lambda *arguments: steps.append("report"))
    call(eval_tool, config_path, checkpoint)
    assert steps == ["left", "report", "left"]  # the last one by `tool_errors`
    steps.clear()
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    call(eval_tool, config_path, checkpoint)
    assert steps == ["left", "left"]


def test_eval_passes_the_devkit_flag(call, eval_tool, config_path, checkpoint, monkeypatch):
    handed = []

    def score(self, results, folder, metric, devkit):
        handed.append((metric, devkit))
        return summary(0)

    def score_file(self, path, folder, devkit):
        handed.append(devkit)
        return summary(0)

    monkeypatch.setattr(DatasetEvaluator, "score", score)
    monkeypatch.setattr(DatasetEvaluator, "score_file", score_file)
    call(eval_tool, config_path, checkpoint)
    call(eval_tool, config_path, checkpoint, "--devkit")
    call(eval_tool, config_path, "--results", "r.json", "--devkit", "--work-dir", checkpoint.parent)
    call(eval_tool, config_path, checkpoint, "--eval", "bbox", "--eval-options", "devkit=True")
    assert handed == [("bbox", False), ("bbox", True), True, (["bbox"], True)]


def test_eval_refuses_unknown_options(call, eval_tool, config_path, checkpoint):
    with pytest.raises(SystemExit, match="--eval-options has colour: only jsonfile_prefix and"):
        call(eval_tool, config_path, checkpoint, "--eval-options", "colour=1")


def test_eval_draws_evenly_spaced_samples(
    call, eval_tool, config_path, checkpoint, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        "projects.bevformer.visualization.draw_sample",
        lambda out_dir, info, predictions, truth, root, threshold, names: drawn.append(
            (out_dir, info["token"], "scores_3d" in predictions, truth, threshold)
        ),
        raising=False,
    )
    call(
        eval_tool, config_path, checkpoint, "--show-dir", "pictures", "--show-samples", 3,
        "--show-score-thr", 0.4,
    )  # fmt: skip
    tokens = ["s0f0", "s1f1", "s2f3"]
    assert drawn == [("pictures", token, True, None, 0.4) for token in tokens]


def test_ground_truth_is_drawn_if_the_info_has_it(monkeypatch):
    class Annotated:
        CLASSES = ("bus",)
        data_root = "root"
        data_infos = [{"token": "a", "gt_boxes": []}]

        def info_with_paths(self, index):
            return self.data_infos[index]

        def ground_truth(self, index):
            return {"boxes_3d": "boxes", "labels_3d": "labels"}

    calls = []
    monkeypatch.setattr(
        "projects.bevformer.visualization.draw_sample", lambda *a: calls.append(a), raising=False
    )
    pictures.draw_samples(Annotated(), {0: "predictions"}, "out")
    (arguments,) = calls
    assert arguments[2:4] == ("predictions", {"boxes_3d": "boxes", "labels_3d": "labels"})
    assert arguments[-1] == ("bus",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval", "bbox", "--format-only"], "--eval and --format-only"),
        (["--out", "x.txt"], "must end in .pkl"),
        (["--show"], "--show-dir"),
        (["--show-dir", "x", "--show-samples", "0"], "--show-samples 0"),
        (["--show-samples", "3"], "--show-samples is about the pictures of --show-dir: give it"),
        (["--show-score-thr", "0.5"], "--show-score-thr is about the pictures of --show-dir"),
        (["--show-dir", __file__], "test_tools.py cannot be written"),
        (["--out", f"{__file__}/a.pkl"], "folder of --out"),
        (["--eval-options", f"jsonfile_prefix={__file__}"], "jsonfile_prefix"),
        (["--eval-options", "devkit=5"], "--eval-options devkit=5: it must be True or False"),
        (["--eval-options", "jsonfile_prefix=5"], "must be the path of a folder"),
        (["--eval", "nothing"], "metric ['nothing'] cannot be evaluated: this data set has bbox"),
        (["--gpu-id", "3"], "--gpu-id 3: the run is on the CPU"),
        (["--options", "a=1", "--eval-options", "a=1"], "older name of --eval-options"),
        (["--launcher", "pytorch"], "environment lacks RANK"),
        (["--device", "cuda", "--gpu-id", "99"], "GPU 99"),
        ([], "nothing.pth does not exist"),
        (["--devkit", "--format-only"], "--devkit and --format-only"),
        (["--results", "r.json"], "either a checkpoint or --results"),
    ],
)
def test_eval_errors_are_one_line(call, eval_tool, config_path, monkeypatch, arguments, message):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as caught:
        call(eval_tool, config_path, "nothing.pth", *arguments)
    text = caught.value.code
    assert text.startswith("error")
    assert message in text
    assert "\n" not in text


def test_the_checkpoint_may_follow_an_option(eval_tool):
    args = eval_tool.parse_args(["c.py", "--format-only", "w.pth"])
    assert (args.config, args.format_only, args.checkpoint) == ("c.py", True, "w.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either a checkpoint or --results"),
        (["--results", "r.json", "--format-only"], "--format-only needs predictions"),
        (["--results", "r.json", "--out", "x.pkl"], "--out needs predictions"),
        (["--results", "r.json", "--show-dir", "x"], "--show-dir needs predictions"),
        (["--results", "r.json", "--launcher", "slurm"], "one process"),
    ],
)
def test_flags_that_conflict_with_results(call, eval_tool, config_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        call(eval_tool, config_path, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg-options", "optimizerr.lr=1"], "did you mean 'optimizer'"),
        (["--cfg-options", "a=1", "--options", "a=1"], "older name of --cfg-options"),
        (["--resume-from", "none.pth"], "none.pth does not exist"),
        (["--work-dir", __file__], "cannot be written"),
        (["--cfg-options", "work_dir=5"], "work_dir is a str, and 5 is not"),
        (
            ["--cfg-options", "data.workers_per_gpu=two"],
            "data.workers_per_gpu is 'two': it must be",
        ),
        (["--cfg-options", "opencv_num_threads=x"], "opencv_num_threads is a int, and 'x' is not"),
        (["--max-iters", "0"], "--max-iters is 0: it must be at least 1"),
    ],
)
def test_train_errors_are_one_line(call, train_tool, config_path, arguments, message):
    with pytest.raises(SystemExit) as caught:
        call(train_tool, config_path, *arguments)
    assert message in caught.value.code
    assert "\n" not in caught.value.code


@pytest.mark.parametrize(
    "tool", ["train", "eval", "visualize", "browse_dataset", "inspect_checkpoint"]
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", ""),
        ("a.yaml", ""),
        ("a.json", "{}"),
        ("b.json", "[1]"),
        ("b.yaml", "text"),
        ("c.json", "{"),
    ],
)
def test_a_config_without_content_is_one_line(monkeypatch, tmp_path, tool, name, text):
    checkpoint = tmp_path / "w.pth"
    torch.save({"meta": {}, "state_dict": {"a": torch.zeros(1)}}, checkpoint)
    config = tmp_path / name
    config.write_text(text)
    arguments = {
        "train": [config],
        "eval": [config, checkpoint],
        "visualize": [config, "--ground-truth-only", "--out-dir", tmp_path],
        "browse_dataset": [config, "--out", tmp_path],
        "inspect_checkpoint": [checkpoint, config],
    }[tool]
    monkeypatch.setattr("sys.argv", ["tool.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        load_tool(tool).main()
    assert re.match(
        r"error \(rank 0\): (model|data\S*|config \S+) (is None|cannot be)", stop.value.code
    )


def test_the_config_in_the_work_dir_is_not_overwritten(call, train_tool, config_path, tmp_path):
    text = config_path.read_text()
    call(
        train_tool, config_path, "--no-validate", "--work-dir", config_path.parent, "--max-iters", 1
    )
    assert config_path.read_text() == text


def test_missing_config_is_one_line_and_debug_shows_the_traceback(call, train_tool):
    with pytest.raises(SystemExit, match="config none.py does not exist"):
        call(train_tool, "none.py")
    with pytest.raises(FileNotFoundError):
        call(train_tool, "none.py", "--debug")


def test_flags_of_mmdet3d_are_accepted(train_tool, eval_tool):
    train_tool.parse_args(
        "c.py --work-dir w --resume-from r --auto-resume --no-validate --gpus 1 --gpu-ids 0 --gpu-id 0 "
        "--seed 0 --diff-seed --deterministic --options a=1 --launcher slurm --local_rank 0 "
        "--autoscale-lr".split()
    )
    args = eval_tool.parse_args(
        "c.py x.pth --work-dir w --out o.pkl --fuse-conv-bn --gpu-ids 2 --gpu-id 0 --eval bbox --show "
        "--show-dir d --gpu-collect --tmpdir t --seed 0 --deterministic --cfg-options a=1 "
        "--eval-options b=2 --launcher mpi --local-rank 0".split()
    )
    assert parse_options(args.eval_options) == {"b": 2}
    assert chosen_gpu(args) == 2


@pytest.mark.parametrize(
    ("arguments", "scenes", "samples"),
    [
        (["--scenes", "s2", "s0"], ["s0", "s2"], 7),
        (["--fraction", "0.1"], ["s1"], 2),
        (["--fraction", "0.7"], ["s0", "s2"], 7),
    ],
)
def test_eval_of_some_scenes(
    call, eval_tool, config_path, checkpoint, tmp_path, capsys, arguments, scenes, samples
):
    call(eval_tool, config_path, checkpoint, "--work-dir", tmp_path / "all")
    whole = json.loads((tmp_path / "all" / "results_nusc.json").read_text())["results"]
    call(eval_tool, config_path, checkpoint, *arguments, "--work-dir", tmp_path / "part")
    part = json.loads((tmp_path / "part" / "results_nusc.json").read_text())["results"]
    assert list(part) == [token for token in whole if token[:2] in scenes]
    assert len(part) == samples


def test_eval_of_all_scenes_is_not_a_part(call, eval_tool, config_path, checkpoint, tmp_path):
    call(eval_tool, config_path, checkpoint, "--fraction", "1", "--work-dir", tmp_path / "all")
    assert len(json.loads((tmp_path / "all" / "results_nusc.json").read_text())["results"]) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenes", "s7", "s0"], "scene s7 is not in dummy.pkl, which has s0, s1, s2"),
        (["--scenes", "s0", "--fraction", "0.5"], "--scenes and --fraction exclude each other"),
        (["--fraction", "0"], "--fraction 0.0: it must be above 0"),
        (["--fraction", "1.5"], "--fraction 1.5: .* at most 1"),
    ],
)
def test_scenes_that_cannot_be_chosen(call, eval_tool, config_path, checkpoint, arguments, message):
    with pytest.raises(SystemExit, match=message):
        call(eval_tool, config_path, checkpoint, *arguments)
