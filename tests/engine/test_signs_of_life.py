"""Two processes, one of which ends, stops or hangs: the other one says so, within the time-out."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch
from tool_runs import free_port

from projects.bevformer.cli.errors import tool_errors
from projects.bevformer.engine import distributed
from projects.bevformer.engine.signs_of_life import SignsOfLife

TIMEOUT_S = 2


def _train(mode):
    with tool_errors(debug=False):
        distributed.init_process("pytorch", "cpu", timeout_minutes=TIMEOUT_S / 60)
        rank = distributed.get_rank()
        for iteration in range(3):
            distributed.note(f"iteration {iteration + 1}", bounded=True)
            if iteration == 1:
                if mode == "all raise":
                    raise ValueError("a sentence of the config")
                if mode == "rank 0 works":
                    assert distributed.on_first_rank(lambda: time.sleep(1.5 * TIMEOUT_S) or 3) == 3
                elif rank == 1:
                    _fail(mode)
            distributed.add_up(torch.ones(1))
        distributed.wait_for_all()


def _fail(mode):
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "hangs":
        time.sleep(60)
    if mode == "raises":
        raise ValueError("picture a.jpg is torn")


def _process(rank, mode, port, folder):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), TORCHELASTIC_ERROR_FILE=f"{folder}/error_{rank}.json",
    )  # fmt: skip
    torch.set_num_threads(1)
    with open(f"{folder}/printed_{rank}", "w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        try:
            _train(mode)
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code)
            os._exit(end.code if isinstance(end.code, int) else 1)


@pytest.fixture
def run_two(tmp_path):
    """Start both ranks, end what is left of rank 1; returns their exit codes and what they printed."""

    def run(mode):
        context, port = multiprocessing.get_context("fork"), free_port()
        ranks = [
            context.Process(target=_process, args=(rank, mode, port, tmp_path)) for rank in (0, 1)
        ]
        for process in ranks:
            process.start()
        try:
            ranks[0].join(30)
        finally:
            if mode in ("stopped", "hangs"):
                ranks[1].kill()
            ranks[1].join(20)
            for process in ranks:
                process.kill()
        codes = [process.exitcode for process in ranks]
        return codes, [(tmp_path / f"printed_{rank}").read_text() for rank in (0, 1)]

    return run


@pytest.mark.parametrize(
    ("mode", "named"),
    [
        ("killed", ["was killed (SIGKILL) or crashed", "out of memory", "last sign of life"]),
        ("stopped", ["is stopped (SIGSTOP"]),
        ("hangs", ["is at iteration 2 for", "dist_params.timeout_minutes"]),
        ("raises", ["ended: picture a.jpg is torn"]),
    ],
)
def test_the_other_rank_names_the_lost_one(mode, named, run_two, tmp_path):
    begin = time.monotonic()
    codes, (first, second) = run_two(mode)
    assert time.monotonic() - begin < TIMEOUT_S + 15  # on a busy machine
    assert codes[0] == 1
    *_, line = first.strip().splitlines()
    assert line.startswith("error (rank 0): rank 1 (host ")
    assert all(words in line for words in [*named, "go on with: "]), line
    assert "Traceback" not in first
    assert line[: line.rindex(";")] in (tmp_path / "error_0.json").read_text()
    if mode == "raises":
        assert second == "error (rank 1): picture a.jpg is torn [--debug shows where]\n"
    if mode == "killed":  # torchrun finds it although the process could not write it any more
        assert "rank 1 (host" in (tmp_path / "error_1.json").read_text()


def test_what_all_ranks_say_alike_is_printed_once(run_two):
    codes, printed = run_two("all raise")
    assert codes == [1, 1]
    assert "".join(printed).count("a sentence of the config") == 1


def test_a_rank_that_works_for_longer_than_the_time_out_is_waited_for(run_two):
    codes, printed = run_two("rank 0 works")
    assert codes == [0, 0], printed


def test_one_rank_that_stops_stops_all(monkeypatch):
    store = torch.distributed.HashStore()
    ranks = [
        SignsOfLife(store, rank, 2, TIMEOUT_S, end=lambda: None, on_sign=lambda doing: None, period_s=0.05)
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        for signs in ranks:
            signs.wait_for_sign()
        monkeypatch.setattr(distributed, "_signs", ranks[0])
        assert not distributed.someone_stops(False)
        ranks[1].stop_all()
        deadline = time.monotonic() + 2
        while not distributed.someone_stops(False):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for signs in ranks:
            signs.leave()
