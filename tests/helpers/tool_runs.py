"""Running the project's tools in processes of their own, on data small enough for a test."""

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "configs" / "demo.py"
TINY = REPOSITORY / "configs" / "bevformer" / "bevformer_tiny.py"

# A BEV of 20 x 20 cells instead of 50 x 50, for the runs where only the plumbing is tested.
SMALL_BEV = {
    f"model.pts_bbox_head.{key}": 20
    for key in (
        "bev_h",
        "bev_w",
        "positional_encoding.row_num_embed",
        "positional_encoding.col_num_embed",
    )
}


def data_options(data_root, train, test):
    """Config overrides: these info files instead of the config's, no data workers.

    Args:
        data_root: folder of the pictures.
        train: info file of `data.train`.
        test: info file of `data.val` and `data.test`.
    """
    files = {"train": train, "val": test, "test": test}
    options = {f"data.{split}.ann_file": str(path) for split, path in files.items()}
    options.update({f"data.{split}.data_root": f"{data_root}/" for split in files})
    return {**options, "data.workers_per_gpu": 0}


def scale_options(cfg_pipelines, scale):
    """Config overrides that set the scale of RandomScaleImageMultiViewImage.

    Args:
        cfg_pipelines: dotted key of a transform list -> that list.
        scale: the factor.
    """
    return {
        f"{key}.{i}.scales": [scale]
        for key, steps in cfg_pipelines.items()
        for i, step in enumerate(steps)
        if step["type"] == "RandomScaleImageMultiViewImage"
    }


def as_flags(options):
    """`--cfg-options` and its words."""
    words = (f"{key}={value}".replace(" ", "") for key, value in options.items())
    return ["--cfg-options", *words]


def run(*arguments, processes=1, timeout=120):
    """Run a Python script of the repository, under torchrun if `processes` is more than one.

    Training and evaluation run on the CPU, also where there is a GPU: one GPU would be too few for two
    processes, and results of both are compared with results on the CPU.

    Args:
        arguments: the script, from the repository root, and its arguments.
        processes: how many; more than one adds `--launcher pytorch`.
        timeout: seconds until the test fails.

    Returns:
        str: what it printed, and its log.
    """
    script, *rest = map(str, arguments)
    if script in ("tools/train.py", "tools/eval.py"):
        rest += ["--device", "cpu"]
    command = [sys.executable, str(REPOSITORY / script), *rest]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        launcher.append(f"--master_port={free_port()}")
        command[1:1] = launcher
        command += ["--launcher", "pytorch"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY / "tests" / "integration"),
    }
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun hands it on to its workers
            raise
    assert process.returncode == 0, printed[-4000:]
    return printed


def free_port():
    """A TCP port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
