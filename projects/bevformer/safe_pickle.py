"""Pickle files read as data: nothing that a file names is imported or called, except what is listed here.

Needs numpy alone, so that a broken installation can still be told what is in its files.
"""

import pickle
from collections import OrderedDict

import numpy as np

# Of dtype codes such as "f8", "U12" and "O8"; no structured types, whose state numpy trusts.
_PLAIN_KINDS = "?biufcSUOMm"


def _dtype(code, align, copy):
    """`numpy.dtype` that never hands out numpy's own instance, which the file could then change."""
    if not isinstance(code, str) or code[:1] not in _PLAIN_KINDS:
        raise pickle.UnpicklingError(f"numpy.dtype of {code!r}")
    return np.dtype(code, align=bool(align), copy=True)


def _encode(text, encoding):
    """`codecs.encode` as old protocols use it for bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _numpy_globals():
    reconstruct, _, _ = np.zeros(0).__reduce__()
    scalar, _ = np.float64(0).__reduce__()
    frombuffer, *_ = np.zeros(1).__reduce_ex__(5)
    found = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): _dtype}
    for core in ("numpy.core", "numpy._core"):  # before and after numpy 2
        found[f"{core}.multiarray", "_reconstruct"] = reconstruct
        found[f"{core}.multiarray", "scalar"] = scalar
        found[f"{core}.numeric", "_frombuffer"] = frombuffer
    return found


PLAIN_GLOBALS = {
    **_numpy_globals(),
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): bytes,  # empty ones in old protocols, which use the names of Python 2
    ("builtins", "bytearray"): bytearray,  # protocol 5 keeps arrays in it
    ("collections", "OrderedDict"): OrderedDict,
}


_NAMES = "the file names "


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, known):
        super().__init__(file)
        self._known = known

    def find_class(self, module, name):
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{_NAMES}{module}.{name}") from None


def load_plain(path, what, remedy, more_globals=None):
    """Read a pickle file of plain values: str, numbers, lists, dicts and numpy arrays.

    Args:
        path: the file; it exists.
        what: what it should be, for messages.
        remedy: how to get a good one, for messages.
        more_globals: dict of (module, name) -> stand-in, for what else the file may name.

    Returns:
        What the file holds.

    Raises:
        ValueError: the file is truncated, not a pickle, or names anything that is not listed; the
            message names it. Nothing of it has been run.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, {**PLAIN_GLOBALS, **(more_globals or {})}).load()
    except Exception as error:  # random bytes can make an unpickler raise anything
        if str(error).startswith(_NAMES):
            foreign = str(error)[len(_NAMES) :]
            raise ValueError(
                f"{path} is not read: it names {foreign}, and a pickle that does can run code; {what} "
                f"holds plain values and numpy arrays alone: {remedy}"
            ) from error
        raise ValueError(
            f"{path} is not {what} ({type(error).__name__}: {error}): it is truncated or of another "
            f"kind; {remedy}"
        ) from error
