import logging
from types import SimpleNamespace

import pytest
from mmcv.runner.hooks.logger.tensorboard import (
    TensorboardLoggerHook as MmcvTensorboardLoggerHook,
)

from projects.bevformer.engine.log import (
    TensorboardLoggerHook,
    TextLoggerHook,
    get_run_logger,
    log_to_file,
)


def test_ops_logs_into_the_log_of_the_run():
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = get_run_logger()
    logger.addHandler(handler)
    try:
        logging.getLogger("projects.bevformer.ops.backends").info("chosen")
        logging.getLogger("projects.bevformer.ops.backends").debug("too much")
    finally:
        logger.removeHandler(handler)
    assert messages == ["chosen"]


def test_every_run_of_a_process_has_its_log_file(tmp_path):
    for name in ("first.log", "second.log"):
        get_run_logger(tmp_path / name).info("in %s", name)
        logging.getLogger("projects.bevformer.ops.backends").info("ops in %s", name)
    for name in ("first.log", "second.log"):
        lines = (tmp_path / name).read_text().splitlines()
        assert [line.split(" - ")[1:] for line in lines] == [  # mmcv's format
            ["mmdet3d", "INFO", f"in {name}"],
            ["projects.bevformer.ops.backends", "INFO", f"ops in {name}"],
        ]
    logger = get_run_logger(tmp_path / "third.log", "ERROR")
    logger.info("not shown")
    assert (tmp_path / "third.log").read_text() == ""
    get_run_logger()  # closes the file


def test_control_characters_of_names_are_escaped(tmp_path):
    get_run_logger(tmp_path / "run.log").info("scene %s\nand", "a\x1b[2Jb\x07")
    get_run_logger()
    assert (tmp_path / "run.log").read_text().endswith("scene a\\x1b[2Jb\\x07\nand\n")


def test_long_texts_go_to_the_file_only(tmp_path, monkeypatch):
    logger = get_run_logger(tmp_path / "run.log")
    (console,) = (h for h in logger.handlers if type(h) is logging.StreamHandler)
    printed = []
    monkeypatch.setattr(console, "emit", lambda record: printed.append(record.getMessage()))
    log_to_file(logger, "config\n%s", "a = 1")
    logger.info("Hooks will be executed in the following order:\n%s", "(LOW) EvalHook")
    logger.info("Iter [1/2]")
    assert printed == ["Iter [1/2]"]
    text = (tmp_path / "run.log").read_text()
    assert "a = 1" in text
    assert "EvalHook" in text
    get_run_logger()


def test_a_log_that_cannot_be_written_is_said_once(tmp_path, monkeypatch, capfd):
    for name in ("run.log", "run.log.json"):
        (tmp_path / name).symlink_to("/dev/full")
    logger = get_run_logger(tmp_path / "run.log")
    (console,) = (h for h in logger.handlers if type(h) is logging.StreamHandler)
    printed = []
    monkeypatch.setattr(console, "emit", lambda record: printed.append(record.getMessage()))
    hook, runner = TextLoggerHook(), SimpleNamespace(rank=0, logger=logger)
    hook.json_log_path = str(tmp_path / "run.log.json")
    for number in (1, 2):
        logger.info("Iter [%d]", number)
        hook._dump_log({"loss": 0.5}, runner)
    get_run_logger()
    assert sorted(text for text in printed if "Iter" in text) == ["Iter [1]", "Iter [2]"]
    warnings = [text for text in printed if "Iter" not in text]
    for name, text in zip(("run.log", "run.log.json"), warnings):
        start = f"{tmp_path}/{name} cannot be written (No space left on device): the file needs"
        assert text.startswith(start)
        assert text.endswith("the run goes on, without this file")
    assert len(warnings) == 2
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("when", ["before_run", "log", "after_run"])
def test_tensorboard_ends_with_a_warning_on_a_full_disk(tmp_path, monkeypatch, when):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    warnings = []
    runner = SimpleNamespace(work_dir=str(tmp_path), hooks=[], iter=0, inner_iter=0, mode="train")
    runner.logger = SimpleNamespace(warning=warnings.append)
    runner.log_buffer = SimpleNamespace(output={"loss": 0.5})
    runner.current_lr, runner.current_momentum = lambda: [0.1], lambda: [0.9]
    hook = TensorboardLoggerHook(by_epoch=False)
    monkeypatch.setattr(MmcvTensorboardLoggerHook, when, full)
    for stage in (hook.before_run, hook.log, hook.log, hook.after_run):
        stage(runner)
    (text,) = warnings
    assert text.startswith(f"{tmp_path}/tf_logs cannot be written (No space left on device)")


def test_a_log_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "run.log").mkdir()
    with pytest.raises(OSError, match=r"run\.log cannot be written \(Is a directory\): a folder"):
        get_run_logger(tmp_path / "run.log")
