"""Data-parallel training and evaluation of the real model: two CPU processes over gloo."""

import json

import pytest
from tool_runs import DEMO, SMALL_BEV, as_flags, run

pytestmark = pytest.mark.integration

ITERATIONS = 20


@pytest.fixture(scope="module")
def flags(synthetic_infos):
    return as_flags({**synthetic_infos.two_scenes, **SMALL_BEV, "data.train.queue_length": 2})


@pytest.fixture(scope="module")
def trained(flags, tmp_path_factory):
    """Work dir of a training run on two processes."""
    work_dir = tmp_path_factory.mktemp("two")
    config = work_dir / "with_hook.py"
    config.write_text(
        f"_base_ = [{str(DEMO)!r}]\n"
        "custom_imports = dict(imports=['rank_weights'])\n"  # the project's plugin is there anyway
        "custom_hooks = [dict(type='RankWeightsHook')]\n"
    )
    run(
        "tools/train.py", config, "--work-dir", work_dir, "--seed", 0, "--no-validate",
        "--max-iters", ITERATIONS, *flags, processes=2, timeout=240,
    )  # fmt: skip
    return work_dir


def test_weights_stay_bit_equal(trained):
    ranks = [json.loads((trained / f"weights_of_rank_{r}.json").read_text()) for r in range(2)]
    assert len(ranks[0]["weights"]) > 100
    assert ranks[0]["weights"] == ranks[1]["weights"]
    # They saw different samples, so only an exchange of gradients makes them agree.
    assert len(ranks[0]["losses"]) == ITERATIONS
    assert all(a != b for a, b in zip(ranks[0]["losses"], ranks[1]["losses"]))


def test_two_processes_write_the_result_file_of_one(trained, flags, tmp_path):
    checkpoint, config = trained / f"iter_{ITERATIONS}.pth", trained / "with_hook.py"
    for name, processes in (("one", 1), ("two", 2)):
        run(
            "tools/eval.py", config, checkpoint, "--work-dir", tmp_path / name, "--format-only",
            *flags, processes=processes,
        )  # fmt: skip
    one, two = (tmp_path / name / "results_nusc.json" for name in ("one", "two"))
    assert len(json.loads(one.read_text())["results"]) == 8
    assert one.read_bytes() == two.read_bytes()
