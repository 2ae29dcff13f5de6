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

from projects.bevformer.engine.checkpoint import load_checkpoint, save_checkpoint
from projects.bevformer.engine.distributed import (
    all_gather,
    average_buffers,
    get_rank,
    init_process,
    on_first_rank,
    shut_down,
)
from projects.bevformer.engine.hooks import FiniteLossHook
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
        "nan_messages": all_gather(message_of_nan_loss(model)),
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


def message_of_nan_loss(model):
    """What FiniteLossHook raises when only rank 1 reads the broken sample."""
    batch = batch_of(get_rank(), nan_sample="s0f1")
    runner = SimpleNamespace(outputs=model.train_step(batch), data_batch=batch, epoch=0, iter=0)
    try:
        FiniteLossHook().after_train_iter(runner)
    except FloatingPointError as error:
        return str(error)
    return "no error"


def error_of_a_full_disk():
    """What ends each rank when rank 0 cannot write."""

    def write():
        raise OSError("No space left")

    try:
        on_first_rank(write)
    except OSError as error:
        return type(error).__name__, str(error), on_first_rank(get_rank)


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
