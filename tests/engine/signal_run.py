"""Run by test_interruption.py: trains the dummy detector, as tools/train.py does, and reports when it begins.

Iterations wait until a file says that they may go on, so that a signal comes within one.
"""

import os
import sys
import time
from pathlib import Path

import torch
from dummy_task import DummyDetector

from projects.bevformer.cli.errors import tool_errors
from projects.bevformer.engine import train as module
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.distributed import get_rank, init_process

STOP_AT = 3


def main(config_path, work_dir, launcher, *arguments):
    device = init_process(launcher, "cpu")
    torch.set_num_threads(1)
    module.collect_env = lambda: {"Python": "3"}
    forward, iterations = DummyDetector.forward, [0]

    def waiting(self, *inputs, **options):
        iterations[0] += 1
        place = Path(work_dir, f"pid_{get_rank()}")
        if iterations[0] == STOP_AT and "--wait" in arguments:
            place.write_text(str(os.getpid()))
            deadline = time.time() + 60
            while not Path(work_dir, "go").exists() and time.time() < deadline:
                time.sleep(0.02)
        return forward(self, *inputs, **options)

    DummyDetector.forward = waiting
    cfg = load_config(config_path, {"data.workers_per_gpu": 2, "checkpoint_config.by_epoch": False})
    cfg.work_dir = work_dir
    with tool_errors(debug=False):
        module.train(cfg, device, "dummy.py", seed=0, auto_resume="--auto-resume" in arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
