"""Pickle files read as data: plain values and numpy arrays, and nothing that runs code.

Imports NumPy only, so that the doctor can use it in a broken installation.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from typing import Any, Callable, Mapping

import numpy as np

from projects.bevformer.files.pickle_scan import MAX_DEPTH, scan_pickle

_LEAVES = frozenset((str, int, float, bool, bytes, type(None)))
_CODE = re.compile(r"[<>|=]?([?biufcSU]\d{0,9}|O8?)")  # of plain dtypes, such as "f8", "U12", "O8"
FOREIGN = "Unsupported global: GLOBAL "  # as torch's own restricted unpickler says it


class Stand:
    """A function that takes the place of a global of a pickle, which cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it changes {self._function.__name__}")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"it changes {self._function.__name__}")


class _Dtype:
    """Takes the place of a numpy.dtype, whose own `__setstate__` trusts what it is given."""

    __slots__ = ("value", "native")
    __hash__ = None

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"numpy.dtype of {code!r}")
        self.value = np.dtype(code)
        self.native = self.value.newbyteorder("=")
        if not self.value.itemsize:
            raise pickle.UnpicklingError(f"numpy.dtype of {code!r}")

    def __setstate__(self, state: Any) -> None:
        _, order, *structure, size, _, _ = state[:8]
        if structure != [None] * 3 or size not in (-1, self.value.itemsize):
            raise pickle.UnpicklingError("a numpy.dtype with a structure")
        self.value = self.value.newbyteorder(order)


class _Array:
    """Takes the place of a numpy array, whose own `__setstate__` trusts its dtype."""

    __slots__ = ("value",)
    __hash__ = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, content = state[-4:]
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    if type(dtype) is not _Dtype or type(shape) is not tuple or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array of something else")
    if dtype.value.hasobject:
        if type(content) is not list:
            raise pickle.UnpicklingError("an array of objects without a list of them")
        array, order = np.empty(len(content), object), "C"  # the list is in this order
        for index, item in enumerate(content):
            array[index] = item
    else:
        array = np.frombuffer(content, dtype.value).astype(dtype.native)  # a copy
        if array.dtype.kind == "U" and array.size and array.view(np.uint32).max() > 0x10FFFF:
            raise pickle.UnpicklingError("an array of text with characters that do not exist")
    if min(shape, default=0) < 0:  # which `reshape` would compute
        raise pickle.UnpicklingError(f"an array of shape {shape}")
    return array.reshape(shape, order=order)


def _scalar(dtype: Any, content: Any) -> Any:
    return _array(content, dtype, (1,))[0]


def _encode(text: Any, encoding: Any) -> bytes:
    """`codecs.encode` as old protocols use it for bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _byte_array(content: Any = b"", encoding: Any = "latin1") -> bytearray:
    """`bytearray` of bytes, not of a number of zeros."""
    return bytearray(
        _encode(content, encoding) if isinstance(content, str) else b"".join([content])
    )


_ANY_ARRAY = Stand(lambda *_: _Array())


def _plain_globals() -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _ANY_ARRAY,
        ("numpy", "dtype"): Stand(lambda code, align=False, copy=False: _Dtype(code)),
        ("_codecs", "encode"): Stand(_encode),
        ("__builtin__", "bytes"): Stand(lambda: b""),  # empty ones in old protocols
        ("builtins", "bytearray"): Stand(_byte_array),  # protocol 5 keeps arrays in it
        ("__builtin__", "bytearray"): Stand(_byte_array),
        ("collections", "OrderedDict"): OrderedDict,
    }
    for core in ("numpy.core", "numpy._core"):  # before and after numpy 2
        found[f"{core}.multiarray", "_reconstruct"] = _ANY_ARRAY
        found[f"{core}.multiarray", "scalar"] = Stand(_scalar)
        found[f"{core}.numeric", "_frombuffer"] = Stand(_array)
    return found


PLAIN_GLOBALS = _plain_globals()


class _Unpickler(pickle.Unpickler):
    """Resolves only the globals in `known`; every other one is an error before anything runs."""

    def __init__(
        self, content: bytes, known: Mapping[tuple[str, str], Any], storage: Callable | None
    ) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._known, self._storage = known, storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{FOREIGN}{module[:99]}.{name[:99]}") from None

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("it refers to something outside of it")
        return self._storage(pid)


def finished(value: Any, limit: int) -> Any:
    """A nested value without stand-ins.

    Args:
        value: of dicts, lists and tuples; changed in place.
        limit: number of values. A list may occur at many places, so that few bytes stand for billions.

    Raises:
        UnpicklingError: there are more values, or they are nested too deeply.
    """
    return _Finisher(limit).finish(value)


class _Finisher:
    def __init__(self, limit: int) -> None:
        self._left = limit

    def finish(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if kind in (_Array, _Dtype):
            if not hasattr(value, "value"):
                raise pickle.UnpicklingError("it has an array without content")
            value = value.value
            kind = type(value)
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError(f"values are nested more than {MAX_DEPTH} deep")
        if kind in (dict, OrderedDict):
            self._count(len(value))
            for key, item in value.items():
                if type(item) not in _LEAVES:
                    value[key] = self.finish(item, depth + 1)
        elif kind is list or (kind is np.ndarray and value.dtype.hasobject):
            items = value if kind is list else value.reshape(-1)
            self._count(len(items))
            for index, item in enumerate(items):
                if type(item) not in _LEAVES:
                    items[index] = self.finish(item, depth + 1)
        elif kind is tuple:
            self._count(len(value))
            if not all(type(item) in _LEAVES for item in value):
                value = tuple(self.finish(item, depth + 1) for item in value)
        if getattr(value, "__dict__", None):  # state_dict._metadata, boxes of mmdet3d
            if kind is OrderedDict and list(vars(value)) != ["_metadata"]:
                raise pickle.UnpicklingError(f"an OrderedDict with {', '.join(vars(value))}")
            self.finish(vars(value), depth + 1)
        return value

    def _count(self, number: int) -> None:
        self._left -= number
        if self._left < 0:
            raise pickle.UnpicklingError("it stands for many more values than it has bytes")


def unpickle(
    content: bytes,
    known: Mapping[tuple[str, str], Any],
    storage: Callable[[Any], Any] | None = None,
) -> Any:
    """The object of a pickle; only the globals in `known` are resolved.

    Args:
        content: the pickle; what follows it is ignored.
        known: (module, name) -> stand-in.
        storage: called with the persistent ids of the pickle.

    Raises:
        Exception: of any kind, since random bytes can make an unpickler raise anything.
    """
    scan_pickle(content)
    return finished(_Unpickler(content, known, storage).load(), len(content) + 2**16)


def foreign_global(error: Exception) -> str | None:
    """The name that a restricted unpickler refused, or None for another error."""
    found = re.search(FOREIGN + r"([\w.]+)", str(error))
    return found.group(1) if found else None


def load_pickle_restricted(
    path: str,
    what: str,
    remedy: str,
    more_globals: Mapping[tuple[str, str], Callable] | None = None,
) -> Any:
    """Read a pickle file of plain values: str, numbers, lists, dicts and numpy arrays.

    Args:
        path: the file; it exists.
        what: what it should be, for messages.
        remedy: how to get a good one, for messages.
        more_globals: (module, name) -> stand-in, for what else the file may contain.

    Returns:
        The content of the file.

    Raises:
        ValueError: the file is truncated, not a pickle, asks for much more memory than its size, or
            refers to anything that is not listed; the message names it. None of its code has run.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        return unpickle(content, {**PLAIN_GLOBALS, **(more_globals or {})})
    except MemoryError:
        raise
    except Exception as error:  # random bytes can make an unpickler raise anything
        foreign = foreign_global(error)
        if foreign:
            raise ValueError(
                f"{path} is not read: it names {foreign}, and unpickling that can run code; "
                f"{what} contains only plain values and numpy arrays: {remedy}"
            ) from error
        raise ValueError(
            f"{path} is not {what} ({type(error).__name__}: {str(error)[:200]}): it is truncated or in "
            f"another format; {remedy}"
        ) from error
