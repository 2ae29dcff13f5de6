"""A hook that lets test_two_processes.py see the weights of every rank."""

import hashlib
import json
from pathlib import Path

from mmcv.runner import HOOKS, Hook

from projects.bevformer.engine.distributed import get_rank


@HOOKS.register_module()
class RankWeightsHook(Hook):
    """Writes `weights_of_rank_R.json` into the work dir: the loss of every iteration, and the final weights.

    Weights are SHA-256 digests by parameter name.
    """

    def before_run(self, runner):
        self.losses = []

    def after_train_iter(self, runner):
        self.losses.append(float(runner.outputs["loss"]))

    def after_run(self, runner):
        digests = {
            name: hashlib.sha256(parameter.detach().cpu().numpy().tobytes()).hexdigest()
            for name, parameter in runner.model.module.named_parameters()
        }
        path = Path(runner.work_dir) / f"weights_of_rank_{get_rank()}.json"
        path.write_text(json.dumps({"weights": digests, "losses": self.losses}))
