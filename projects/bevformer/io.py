"""Files: pickles and checkpoints read as data, paths of a data set, damaged images.

Imports NumPy only (torch where a checkpoint is read), so that the doctor can use it in a broken
installation.
"""

from __future__ import annotations

import io
import os
import os.path as osp
import pickle
import re
from collections import OrderedDict
from types import SimpleNamespace
from typing import IO, Any, Callable, Mapping

import numpy as np

_JPEG = b"\xff\xd8"
_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = b"\xff\xd9"
# Code lengths of the Huffman table that cameras use (ITU-T T.81, table K.5). With it, zero bits
# encode blocks that no picture has; with a table made for one picture they may be plain sky.
_STANDARD_TABLE = bytes([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125])
_LOST_BLOCK = bytes(256)  # disks and copies lose 512 bytes at least; pictures have runs of about 8

# Of dtype codes such as "f8", "U12" and "O8"; no structured types, whose state numpy trusts.
_PLAIN_KINDS = "?biufcSUOMm"


def _dtype(code, align, copy):
    """`numpy.dtype` that never returns numpy's own instance, which the file could then change."""
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


_FOREIGN = "Unsupported global: GLOBAL "  # as torch's own restricted unpickler says it


class _RestrictedUnpickler(pickle.Unpickler):
    """Resolves only the globals in `known`; every other one is an error before anything runs."""

    def __init__(self, file: IO[bytes], known: Mapping[tuple[str, str], Any], **options: Any):
        super().__init__(file, **options)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{_FOREIGN}{module}.{name}") from None


def _foreign_global(error: Exception) -> str | None:
    """The name that a restricted unpickler refused, or None for another error."""
    found = re.search(_FOREIGN + r"([\w.]+)", str(error))
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
        ValueError: the file is truncated, not a pickle, or refers to anything that is not listed;
            the message names it. None of its code has run.
    """
    try:
        with open(path, "rb") as file:
            return _RestrictedUnpickler(file, {**PLAIN_GLOBALS, **(more_globals or {})}).load()
    except Exception as error:  # random bytes can make an unpickler raise anything
        foreign = _foreign_global(error)
        if foreign:
            raise ValueError(
                f"{path} is not read: it names {foreign}, and unpickling that can run code; "
                f"{what} contains only plain values and numpy arrays: {remedy}"
            ) from error
        raise ValueError(
            f"{path} is not {what} ({type(error).__name__}: {error}): it is truncated or in "
            f"another format; {remedy}"
        ) from error


def _torch_globals() -> dict[tuple[str, str], Any]:
    """What `torch.save` writes for tensors and plain values."""
    import torch

    names = {"Size", "device"} | {name for name in dir(torch) if name.endswith("Storage")}
    names |= {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    rebuild = ("_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2")
    return {
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        **{("torch", name): getattr(torch, name) for name in names},
        **{("torch._utils", name): getattr(torch._utils, name) for name in rebuild},
    }


def _restricted_pickle() -> SimpleNamespace:
    """Replaces the pickle module in `torch.load` of torch < 1.13, which has no `weights_only`."""
    known = _torch_globals()

    class Unpickler(_RestrictedUnpickler):
        def __init__(self, file: IO[bytes], **options: Any):
            super().__init__(file, known, **options)

    return SimpleNamespace(
        __name__="restricted pickle",
        Unpickler=Unpickler,
        load=lambda file, **options: Unpickler(file, **options).load(),
    )


def _restricted() -> dict[str, Any]:
    """Arguments of `torch.load` that keep it from running code."""
    import torch

    major, minor = map(int, torch.__version__.split(".")[:2])
    old = (major, minor) < (1, 13)
    return {"pickle_module": _restricted_pickle()} if old else {"weights_only": True}


def load_torch_bytes(content: bytes) -> Any:
    """Read a storage that torch put into a pickle, with the restrictions of `load_torch_file`."""
    import torch

    return torch.load(io.BytesIO(content), map_location="cpu", **_restricted())


def load_torch_file(path: str, map_location: str = "cpu") -> Any:
    """`torch.load` that never runs code from the file: tensors and plain Python values only.

    Args:
        path: a file written by `torch.save`.
        map_location: as in `torch.load`.

    Returns:
        The content of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, empty, truncated, not of torch, or holds other objects.
    """
    import torch

    path = osp.expanduser(path)
    if osp.isdir(path):
        files = sorted(name for name in os.listdir(path) if name.endswith(".pth"))
        raise ValueError(
            f"checkpoint {path} is a folder: name one of its files"
            + (f", such as {osp.join(path, files[-1])}" if files else "; it has no .pth")
        )
    if not osp.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        return torch.load(path, map_location=map_location, **_restricted())
    except Exception as error:  # random bytes can make an unpickler raise anything
        foreign = _foreign_global(error)
        if foreign:
            raise ValueError(
                f"checkpoint {path} holds a Python object ({foreign}); "
                "loading it could run code, so only tensors and plain values are read: save it "
                "again with `meta` made of str, int, float, list and dict"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"checkpoint {path} cannot be read ({reason}): it is truncated or not a torch file; "
            "copy or download it again"
        ) from error


def join_root(data_root, path):
    """Where a file of an info record lies.

    Args:
        data_root: folder that paths are relative to; None or "" where there is none.
        path: as in the record. Absolute paths, and relative ones that begin with `data_root`, as
            the original BEVFormer writes them, are returned unchanged.

    Raises:
        ValueError: the path leads out of data_root.
    """
    root = data_root or ""
    if osp.normpath(path).startswith(osp.normpath(root) + osp.sep):
        return path
    joined = osp.join(root, path)  # an absolute path stays unchanged
    if ".." in path and root and osp.relpath(joined, root).split(osp.sep)[0] == osp.pardir:
        raise ValueError(
            f"an info record names the file {path}, which is outside of data_root {root}: write "
            "the info file again with tools/create_data.py"
        )
    return joined


def jpeg_damage(content):
    """What is wrong with the bytes of an image file, as far as it shows without decoding.

    Decoders fill in grey for what is cut off, and continue with wrong pixels after a lost block.

    Args:
        content: bytes of the file; only JPEG is judged.

    Returns:
        str such as "is cut off", or None.
    """
    if not content:
        return "is empty"
    if not content.startswith(_JPEG):
        return None
    content = content.rstrip(b"\0")  # padding after the end does no harm
    if not content.endswith(_END_OF_IMAGE):
        return "is cut off: a JPEG without its end"
    if _STANDARD_TABLE in content and content.find(_LOST_BLOCK, content.rfind(_START_OF_SCAN)) >= 0:
        return "has lost a part: a block of zeros inside"
    return None


def decode_image(content: bytes, flags: int = -1) -> np.ndarray:
    """Decode an image, refusing what the decoder would fill in with grey.

    Args:
        content: bytes of the file.
        flags: of `cv2.imdecode`; -1 (IMREAD_UNCHANGED) leaves channels and orientation as stored.

    Returns:
        (H, W, 3) uint8 BGR of a usual image; what `cv2.imdecode` returns for others.

    Raises:
        ValueError: with what is wrong, such as "is cut off".
    """
    import cv2

    damage = jpeg_damage(content)
    image = None if damage else cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    if image is None:
        raise ValueError(damage or "cannot be decoded")
    return image


def read_image(path: str, flags: int = -1) -> np.ndarray:
    """Read an image file; arguments and result as in `decode_image`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or not an image.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f"camera image {path} does not exist: check data_root, or unpack the images again"
        )
    with open(path, "rb") as file:
        content = file.read()
    try:
        return decode_image(content, flags)
    except ValueError as error:
        raise ValueError(f"camera image {path} {error}: unpack or download it again") from None
