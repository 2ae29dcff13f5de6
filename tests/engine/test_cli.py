"""Errors of a tool end in one line, also those of data loading processes."""

import pytest
from torch.utils.data import DataLoader

from projects.bevformer.engine.cli import tool_errors


class Broken:
    """A data set that fails while it handles another error, as readers do."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            [][index]
        except IndexError as error:
            raise ValueError("image a.jpg: is cut off\nand torn") from error


def test_errors_of_workers_are_one_line():
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert stop.value.code == (
        "error (rank 0): image a.jpg: is cut off and torn [--debug shows where]"
    )


def test_debug_lets_the_error_through():
    with pytest.raises(ValueError, match="Original Traceback"), tool_errors(debug=True):
        next(iter(DataLoader(Broken(), num_workers=1)))


def test_a_loss_that_is_not_finite_is_one_line():
    with pytest.raises(SystemExit, match="loss is not finite"), tool_errors(debug=False):
        raise FloatingPointError("loss is not finite at epoch 1")


def test_ctrl_c_is_no_traceback():
    with pytest.raises(SystemExit) as stop, tool_errors(debug=False):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    with pytest.raises(KeyboardInterrupt), tool_errors(debug=True):
        raise KeyboardInterrupt
