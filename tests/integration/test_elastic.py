"""torchrun restarts a run in which a worker is killed, and it ends with the weights of one that was not."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tool_runs import REPOSITORY, free_port

SCRIPT = Path(__file__).with_name("elastic_run.py")
CONFIG = f"""
_base_ = ["{REPOSITORY}/configs/_base_/default_runtime.py"]
custom_imports = dict(_delete_=True, imports=["dummy_task"])
model = dict(type="DummyDetector")
data = dict(
    samples_per_gpu=2, workers_per_gpu=0, train=dict(type="DummyDataset"),
    val=dict(type="DummyDataset"), test=dict(type="DummyDataset"),
)
optimizer = dict(type="AdamW", lr=1e-2, weight_decay=0.01)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(policy="CosineAnnealing", min_lr_ratio=1e-3)
log_config = dict(interval=1)
runner = dict(type="EpochBasedRunner", max_epochs=2)
"""


def start(nodes, folder, kills=()):
    """Train with two processes of one or two agents; returns the checkpoint and what was printed."""
    folder.mkdir()
    config = folder / "dummy.py"
    config.write_text(textwrap.dedent(CONFIG))
    port = free_port()
    rendezvous = [f"--master_port={port}", "--nproc_per_node=2"]
    if nodes == 2:
        rendezvous = [
            *("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test"),
            f"--rdzv_endpoint=127.0.0.1:{port}",
        ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--max_restarts=3", *rendezvous]
    paths = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests" / "helpers")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    work = folder / "work"
    work.mkdir()
    agents = [
        subprocess.Popen(
            [*launcher, str(SCRIPT), str(config), str(work), *map(str, kills)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for _ in range(nodes)
    ]  # fmt: skip
    try:
        printed = [agent.communicate(timeout=500)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()
    assert [agent.returncode for agent in agents] == [0] * nodes, "\n".join(printed)[-4000:]
    assert sorted(path.name for path in work.glob("killed_*")) == [f"killed_{n}" for n in kills]
    return torch.load(work / "latest.pth", map_location="cpu"), "\n".join(printed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return start(1, tmp_path_factory.mktemp("elastic") / "undisturbed")[0]


@pytest.mark.long
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_restarted_run_is_equal(nodes, undisturbed, tmp_path):
    # Before the first checkpoint, one iteration after one, and in the second epoch.
    ended, printed = start(nodes, tmp_path / "run", kills=(2, 4, 6))
    assert (
        len(re.findall(r"error \(rank 0\): rank 1 \(host .*was killed \(SIGKILL\)", printed)) == 3
    )
    assert ended["meta"]["iter"] == undisturbed["meta"]["iter"] == 6
    for name, value in undisturbed["state_dict"].items():
        assert torch.equal(ended["state_dict"][name], value), name
    for number, state in undisturbed["optimizer"]["state"].items():
        for name, value in state.items():
            other = ended["optimizer"]["state"][number][name]
            assert torch.equal(torch.as_tensor(other), torch.as_tensor(value)), (number, name)
