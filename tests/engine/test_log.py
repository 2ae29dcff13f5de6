import logging

from projects.bevformer.engine.log import get_run_logger, log_to_file


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
