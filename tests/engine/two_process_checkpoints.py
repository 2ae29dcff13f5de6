"""Run by test_distributed.py under torchrun: checkpoints in backbone and encoder under DDP."""

import json
import sys

import torch
from tiny_bevformer import build_detector, training_batch

from projects.bevformer.engine.distributed import all_gather, get_rank, init_process, shut_down
from projects.bevformer.engine.training_model import TrainingModel, total_loss

STEPS = 2  # DDP uses in the second what it learned in the first


def batch_of(rank):
    """History frames and a current one: every module is called three times a step."""
    return training_batch((rank,), frames=3, boxes=(3, 3))


def gradients(module):
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def main():
    device = init_process("pytorch", "cpu")
    model = TrainingModel(build_detector(with_cp=True), device)
    for _ in range(STEPS):
        model.zero_grad(set_to_none=True)
        loss = model.train_step(batch_of(get_rank()))["loss"]
        loss.backward()
    shared = gradients(model.module)
    ranks = all_gather(shared)

    # The mean over both batches, without DDP and checkpoints.
    alone = build_detector()
    sums = {}
    for rank in range(2):
        alone.zero_grad(set_to_none=True)
        total_loss(alone(return_loss=True, **batch_of(rank)))[0].backward()
        for name, gradient in gradients(alone).items():
            sums[name] = sums.get(name, 0) + gradient / 2
    report = {
        "parameters": len(shared),
        "same_on_both_ranks": all(torch.equal(ranks[0][n], ranks[1][n]) for n in shared),
        "named_alike": shared.keys() == sums.keys(),
        "largest_difference": max(
            ((shared[n] - sums[n]).norm() / sums[n].norm().clamp(min=1e-6)).item() for n in sums
        ),
    }
    if get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(report, file)
    shut_down()


if __name__ == "__main__":
    main()
