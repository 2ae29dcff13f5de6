from types import SimpleNamespace

import pytest
import torch
from dummy_task import DummyDataset
from mmcv.runner import LogBuffer

from projects.bevformer.engine.hooks import DataWaitHook, TemporalEvalHook


class TimedRun:
    """Runs iterations of given times through a DataWaitHook; collects its warnings."""

    def __init__(self):
        self.hook = DataWaitHook("Buy workers", interval=4, skip=2)
        self.warnings = []
        self.iter = 7  # resumed
        self.log_buffer = LogBuffer()
        self.logger = SimpleNamespace(
            warning=lambda text, *values: self.warnings.append(text % values)
        )
        self.hook.before_run(self)

    def epoch(self, waits_s, time_s=1.0):
        self.log_buffer.clear()
        self.hook.before_train_epoch(self)
        for wait_s in waits_s:
            self.log_buffer.update({"data_time": wait_s, "time": time_s})
            self.hook.after_train_iter(self)
            self.iter += 1


def test_warns_once_about_waiting_for_data():
    run = TimedRun()
    run.epoch([0.9, 0.9, 0.3, 0.4, 0.2])  # two to start with
    assert run.warnings == []
    run.epoch([9.0, 0.4])  # workers start anew
    (line,) = run.warnings
    assert line == (
        "training waits for data: 0.300 s of the 1.000 s of an iteration, in the last 4 iterations. "
        "Buy workers"
    )
    run.epoch([0.9] * 20)
    assert len(run.warnings) == 1


def test_evaluation_does_not_count_as_waiting_for_data():
    run = TimedRun()
    run.epoch([0.1] * 4 + [60.0] + [0.1] * 7)
    assert run.warnings == []


def test_no_warning_for_fast_data():
    run = TimedRun()
    run.epoch([0.2] * 30)
    assert run.warnings == []
    run.epoch([0.5] * 5)  # later: another machine reads the same disk
    assert len(run.warnings) == 1


@pytest.mark.parametrize(
    ("interval", "start", "due"), [(1, None, [1, 2, 3, 4, 5, 6]), (3, None, [3, 6]), (2, 4, [4, 6])]
)
def test_evaluation_is_due_every_interval_from_start(interval, start, due):
    hook = TemporalEvalHook(DummyDataset(), torch.device("cpu"), interval=interval, start=start)
    assert [n for n in range(1, 7) if hook._is_due(n)] == due


@pytest.mark.parametrize(
    ("name", "key"), [("NDS", "NDS"), ("auto", "NDS"), ("pts_bbox_NuScenes/mAP", "mAP")]
)
def test_save_best_accepts_the_names_users_write(name, key):
    assert TemporalEvalHook(DummyDataset(), torch.device("cpu"), save_best=name).best_key == key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "segm"}, "'segm' cannot be evaluated: this data set has bbox"),
        ({"metric": []}, "cannot be evaluated"),
        ({"save_best": "mIoU"}, "save_best is 'mIoU'"),
        ({"save_best": "NDS", "rule": "less"}, "rule is 'less': of NDS, greater is better"),
        ({"save_best": "mAP", "rule": "most"}, "rule is 'most'"),
        ({"out_dir": "best"}, "out_dir='best' of TemporalEvalHook is not supported"),
        ({"broadcast_bn_buffer": False}, "broadcast_bn_buffer=False of .* is not supported"),
        ({"save_best": "map_head/iou"}, "save_best is 'map_head/iou'.*evaluation.metric names"),
    ],
)
def test_unknown_metrics_are_refused_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        TemporalEvalHook(DummyDataset(), torch.device("cpu"), **options)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"save_best": "auto"}, "greater"),
        ({"save_best": "mATE"}, "less"),
        ({"save_best": "number/mean"}, "greater"),
        ({"save_best": "number/loss_mean"}, "less"),
        ({"save_best": "number/mean", "less_keys": ["mean"]}, "less"),
        ({"save_best": "number/loss", "greater_keys": "loss"}, "greater"),
        ({"save_best": "number/mean", "rule": "less", "gpu_collect": True, "tmpdir": "t"}, "less"),
    ],
)
def test_the_rule_says_which_checkpoint_is_best(options, rule):
    evaluator = SimpleNamespace(
        check=lambda metric: ["pts_bbox", "number"], overall_names=("NDS", "mAP")
    )
    dataset = SimpleNamespace(evaluator=evaluator)
    hook = TemporalEvalHook(dataset, torch.device("cpu"), **options)
    assert hook.rule == rule
    assert hook.best.sign == (-1 if rule == "less" else 1)
