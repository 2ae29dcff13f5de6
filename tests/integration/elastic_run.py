"""Run by test_elastic.py under torchrun: trains the dummy detector, and rank 1 is killed at some iterations.

Arguments: config, work dir, then `N` for each iteration in which it is killed, once.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from dummy_task import DummyDetector

from projects.bevformer.cli.errors import tool_errors
from projects.bevformer.engine import train as module
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.distributed import get_rank, init_process
from projects.bevformer.engine.runner import RUNNERS


def main(config_path, work_dir, *kills):
    with tool_errors(debug=False):
        device = init_process("pytorch", "cpu", timeout_minutes=1)
        torch.set_num_threads(1)
        forward, runner_class = DummyDetector.forward, RUNNERS["EpochBasedRunner"]
        call_hook = runner_class.call_hook

        def with_dropout(self, img, *inputs, **options):
            return forward(self, torch.nn.functional.dropout(img, 0.3), *inputs, **options)

        def call_and_kill(self, name):
            call_hook(self, name)
            done = Path(work_dir, f"killed_{self.iter + 1}")
            is_due = name == "before_train_iter" and str(self.iter + 1) in kills
            if is_due and get_rank() == 1 and not done.exists():
                done.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        DummyDetector.forward = with_dropout
        runner_class.call_hook = call_and_kill
        module.collect_env = lambda: {"Python": "3"}
        options = {"checkpoint_config.by_epoch": False, "checkpoint_config.interval": 2}
        cfg = load_config(config_path, options)
        cfg.work_dir, cfg.evaluation = work_dir, None
        module.train(cfg, device, "dummy.py", seed=0, auto_resume=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
