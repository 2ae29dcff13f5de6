"""Run by test_distributed.py under torchrun: trains on two processes, reports what they have in common."""

import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from dummy_task import DummyDataset, DummyDetector
from mmcv import Config
from mmcv.parallel import collate
from mmcv.runner import LogBuffer

from projects.bevformer.engine.checkpoint import load_checkpoint, save_checkpoint
from projects.bevformer.engine.distributed import (
    all_gather,
    average_buffers,
    get_rank,
    init_process,
    on_first_rank,
    shut_down,
)
from projects.bevformer.engine.finite_hook import FiniteLossHook
from projects.bevformer.engine.non_finite import NonFiniteError
from projects.bevformer.engine.optimizer_hooks import OptimizerHook
from projects.bevformer.engine.resume import checkpoint_to_resume, read_on_all_ranks
from projects.bevformer.engine.training_model import TrainingModel


def batch_of(index, **options):
    return collate([DummyDataset(**options)[index]], samples_per_gpu=1)


def same_on_all_ranks(tensors):
    gathered = all_gather([tensor.detach().clone() for tensor in tensors])
    return all(torch.equal(a, b) for ranks in zip(*gathered) for a, b in zip(ranks, ranks[1:]))


def main():
    device = init_process("pytorch", "cpu")
    torch.manual_seed(get_rank())  # DDP has to hand out the weights of rank 0
    detector = DummyDetector()
    model = TrainingModel(detector, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    start = {name: value.clone() for name, value in detector.state_dict().items()}
    gradients_equal, first_gradients, losses = [], None, []
    for iteration in range(20):
        outputs = model.train_step(batch_of(2 * (iteration % 4) + get_rank()))
        optimizer.zero_grad()
        outputs["loss"].backward()
        gradients = [p.grad for p in detector.parameters()]
        gradients_equal.append(same_on_all_ranks(gradients))
        if first_gradients is None:
            first_gradients = [gradient.clone() for gradient in gradients]
        losses.append(outputs["loss"].item())
        optimizer.step()

    gathered_losses = all_gather(losses)
    report = {
        "backend": torch.distributed.get_backend(),
        "gradients_equal": gradients_equal,
        "losses_differ_by_rank": gathered_losses[0] != gathered_losses[1],
        "parameters_equal": same_on_all_ranks(detector.parameters()),
        "gradient_is_the_mean_over_ranks": is_mean_over_ranks(start, first_gradients),
        "non_finite": {
            f"{what}, {policy}": all_gather(after_non_finite(model, optimizer, what, policy))
            for what in ("loss", "gradient")
            for policy in ("stop", "skip")
        },
        "resumed": all_gather(resume_without_a_shared_folder(detector, Path(sys.argv[1]).parent)),
        "full_disk": all_gather(error_of_a_full_disk()),
        "mean_statistics": all_gather(averaged_statistics(detector)),
    }
    if get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(report, file)
    shut_down()


def is_mean_over_ranks(start, gradients):
    """Compare with the batches of both ranks, run one after the other in this process."""
    alone = DummyDetector()
    alone.load_state_dict(start)
    for rank in range(2):
        losses = alone(return_loss=True, **unwrapped(batch_of(rank)))
        (sum(v.mean() for v in (losses["loss_cls"], *losses["d0.loss_bbox"])) / 2).backward()
    return all(
        torch.allclose(p.grad, gradient, rtol=1e-5, atol=1e-7)
        for p, gradient in zip(alone.parameters(), gradients)
    )


def unwrapped(batch):
    return {key: value.data[0] for key, value in batch.items()}


def after_non_finite(model, optimizer, what, policy):
    """What an iteration ends in, and a second one after it, when only rank 1 reads the broken sample."""
    guard, step = FiniteLossHook(policy), OptimizerHook()
    runner = SimpleNamespace(
        **dict(model=model, optimizer=optimizer, hooks=[guard, step], log_buffer=LogBuffer()),
        **dict(epoch=0, iter=6, saved=("iter_6.pth", 6), logger=logging.getLogger("two")),
    )
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    forward = model.module.forward
    if what == "gradient" and get_rank() == 1:

        def spoilt(**batch):
            losses = forward(**batch)
            losses["loss_cls"].register_hook(lambda gradient: gradient * float("nan"))
            return losses

        model.module.forward = spoilt
    guard.before_run(runner)
    results = []
    try:
        for nan_sample in ("s0f1" if what == "loss" else None, None):
            runner.data_batch = batch_of(get_rank(), nan_sample=nan_sample)
            guard.before_train_iter(runner)
            runner.outputs = model.train_step(runner.data_batch)
            runner.log_buffer.update(runner.outputs["log_vars"])
            guard.after_train_iter(runner)
            step.after_train_iter(runner)
            values = list(model.module.state_dict().values())
            unchanged = all(torch.equal(*pair) for pair in zip(state.values(), values))
            results.append((runner.skipped, unchanged, same_on_all_ranks(model.parameters())))
            model.module.forward = forward
    except NonFiniteError as error:
        results = str(error)
    model.module.forward = forward
    return results


def error_of_a_full_disk():
    """What ends each rank when rank 0 cannot write."""

    def write():
        raise PermissionError(13, "Permission denied")

    try:
        on_first_rank(write)
    except OSError as error:
        return type(error).__name__, hasattr(error, "of_first_rank"), on_first_rank(get_rank)


def averaged_statistics(detector):
    detector.norm.running_mean.fill_(get_rank())
    detector.norm.num_batches_tracked.fill_(get_rank())
    average_buffers(detector)
    return detector.norm.running_mean[0].item(), detector.norm.num_batches_tracked.item()


def resume_without_a_shared_folder(detector, folder):
    """What each rank reads where only rank 0 has the file, and the error of a broken one."""
    own = folder / f"node_{get_rank()}"
    (own / "work").mkdir(parents=True)
    os.chdir(own)
    if get_rank() == 0:
        save_checkpoint("work/epoch_1.pth", detector, meta={"epoch": 1})
        Path("broken.pth").write_bytes(b"PK")
    cfg, logger = Config({"work_dir": "work"}), logging.getLogger("two")
    found = checkpoint_to_resume(cfg, True, logger, counts_epochs=True)
    checkpoint = read_on_all_ranks(load_checkpoint, found, logger)
    try:
        read_on_all_ranks(load_checkpoint, "broken.pth", logger)
    except ValueError as error:
        message = str(error)
    weight = checkpoint["state_dict"]["head.weight"]
    same = torch.equal(weight, detector.head.weight)
    return found, checkpoint["meta"]["epoch"], same, sorted(os.listdir("work")), message


if __name__ == "__main__":
    main()
