"""Run by test_exact_resume.py under torchrun: the cases of two processes, one after the other."""

import json
import sys
import time
from pathlib import Path

import torch
from resume_cases import CASES, changed_by_evaluation, differences

from projects.bevformer.engine import train as module
from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.distributed import get_rank, init_process, shut_down


def main(config_path, folder):
    init_process("pytorch", "cpu")
    torch.set_num_threads(1)
    wait = time.sleep
    time.sleep = lambda seconds: wait(min(seconds, 0.1))  # not none, see SampleLoader
    module.collect_env = lambda: {"Python": "3"}

    def config(options):
        return load_config(config_path, options)

    cases = [case for case in CASES if case.processes == 2]
    report = {case.name: differences(case, config, Path(folder, case.name)) for case in cases}
    report["evaluation"] = changed_by_evaluation(cases[-1], config, Path(folder))
    if get_rank() == 0:
        Path(folder, "report.json").write_text(json.dumps(report))
    time.sleep = wait  # `shut_down` needs its second
    shut_down()


if __name__ == "__main__":
    main(*sys.argv[1:])
