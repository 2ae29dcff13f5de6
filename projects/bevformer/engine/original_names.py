"""Names of the original's registries that are not parts of the network, and those that are not here.

The names of the network, its data sets and their steps are registered where these are. The table is in
docs/checkpoint_compatibility.md#names-of-the-original.
"""

from __future__ import annotations

import torch
from mmcv.runner import HOOKS, OPTIMIZERS, BaseRunner, Hook

from projects.bevformer.published import published

# Works around a bug of AdamW in torch 1.8; the numbers are those of AdamW.
OPTIMIZERS.register_module(name="AdamW2", module=torch.optim.AdamW)

# Names that are not here -> what to use instead. No config of the original uses them.
SUBSTITUTES = {
    "CustomNuScenesMonoDataset": "CustomNuScenesDatasetV2 with mono_cfg has the objects of single images",
    "MM_BEVFormerLayer": "use BEVFormerLayer; there is no layer that reads lidar features as well",
    "MyCustomBaseTransformerLayer": "it is a base class: use BEVFormerLayer or "
    "DetrTransformerDecoderLayer, or a layer of your own",
    "PerceptionTransformerBEVEncoder": "use PerceptionTransformerV2, which has the decoder as well",
    "BEVHead": "use BEVFormerHead; a head of your own on the BEV goes into `heads` of the model",
    "FreeAnchor3DHeadV2": "use BEVFormerHead; a head of your own on the BEV goes into `heads` of the "
    "model",
}


@HOOKS.register_module()
@published(ignores=("every_n_inters",))
class TransferWeight(Hook):
    """Takes the place of the hook that the original's mixed-precision recipe names.

    There it copies the weights to a second network, which encodes the history. Here one network encodes
    all frames, so there is nothing to copy.
    """

    def before_run(self, runner: BaseRunner) -> None:
        runner.logger.info(
            "TransferWeight: nothing to transfer, one network encodes history and current frame"
        )


@HOOKS.register_module()
class GradChecker(Hook):
    """Warns, once for each, about weights that are trained but get no gradient."""

    def before_run(self, runner: BaseRunner) -> None:
        self.known: set[str] = set()

    def after_train_iter(self, runner: BaseRunner) -> None:
        for name, weight in runner.model.module.named_parameters():
            if weight.requires_grad and weight.grad is None and name not in self.known:
                self.known.add(name)
                runner.logger.warning("GradChecker: %s gets no gradient", name)
