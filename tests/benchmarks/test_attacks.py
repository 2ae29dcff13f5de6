"""The attacks of benchmarks/attacks.py: the quickest telling rows here, all of them in make test-long."""

import pytest
import torch
from attack_rows import all_rows  # noqa: F401
from attack_rows.processes import Result
from attack_rows.table import ROWS, NotHere, WrongRow, chosen, expect_refusal, judge
from attack_rows.world import World
from attacks import import_everything, main
from kills import main as kill
from mmcv.runner import epoch_based_runner, iter_based_runner
from soak import growth
from soak import main as soak

RUNNERS = (epoch_based_runner, iter_based_runner)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    threads, clocks = torch.get_num_threads(), [module.time for module in RUNNERS]
    import_everything()
    world = World(tmp_path_factory.mktemp("attacks"))
    yield world
    world.clean_up()
    for module, clock in zip(RUNNERS, clocks):
        module.time = clock
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("one", [one for one in ROWS if one.quick], ids=lambda one: one.name)
def test_quick_row(world, one):
    verdict, what, _ = judge(one, world)
    assert verdict == "right", what


@pytest.mark.long
def test_all_rows():
    assert main([]) == 0


@pytest.mark.long
def test_kills():
    assert kill(["--kills", "20"]) == 0


@pytest.mark.long
def test_soak():
    assert soak(["--iterations", "300"]) == 0


def refused(text, code=1):
    return Result(code, text, 1.0)


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (refused("fine", 0), "accepted"),
        (refused("error: x", -11), "died of signal 11"),
        (refused("Traceback (most recent call last)\nerror: x"), "traceback"),
        (refused("error: this"), "the last line lacks that"),
        (refused("hm"), "names no error"),
        (refused("", None), "not at an end"),
    ],
)
def test_what_is_no_refusal(result, what):
    with pytest.raises(WrongRow, match=what):
        expect_refusal(result, "that")


def test_verdicts(world):
    def row(error):
        def attack(world):
            if error is not None:
                raise error

        return type("Row", (), {"attack": staticmethod(attack), "right": "this"})

    found = [
        judge(row(error), world)[0] for error in (None, WrongRow("x"), NotHere("y"), KeyError())
    ]
    assert found == ["right", "WRONG", "not here", "WRONG"]


def test_rows_are_chosen_by_the_start_of_their_names():
    names = [one.name for one in chosen(["dead.bad_iteration["])]
    assert names == [f"dead.bad_iteration[{how}]" for how in ("loss", "inf", "gradient", "weight")]
    with pytest.raises(ValueError, match="no row has this name"):
        chosen(["nothing"])


def test_names_of_rows_differ():
    assert len({one.name for one in ROWS}) == len(ROWS)


def test_growth_compares_medians():
    samples = [{"iteration": number, "resident": 100 + number} for number in range(40)]
    assert growth(samples, "resident", 20) == (122.0, 137.0)
    assert growth(samples[:3], "resident", 0) is None
