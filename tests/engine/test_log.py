import logging

from projects.bevformer.engine.log import get_run_logger


def test_what_ops_reports_is_in_the_log_of_the_run():
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
