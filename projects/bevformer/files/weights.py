"""Weight files read as data: the zip and the older format of torch.save, and safetensors.

Both formats of torch are read here rather than by torch.load, which on torch 1.10 executes TorchScript
archives and has no `weights_only`, whose `weights_only` was broken twice since (CVE-2025-32434 up to
2.5, CVE-2026-24747 up to 2.9), and which believes sizes and ignores the checksums of the archive.
"""

from __future__ import annotations

import json
import math
import os
import os.path as osp
import re
import reprlib
import zipfile
from typing import IO, Any, Callable, Mapping, NamedTuple

import numpy as np
import torch

from projects.bevformer.files.pickle_scan import scan_pickle
from projects.bevformer.files.pickles import (
    PLAIN_GLOBALS,
    Stand,
    finished,
    foreign_global,
    unpickle,
)

_BYTES_PER_BYTE = 4  # tensors that share a storage, such as tied weights, have more than the file
_CHUNK = 2**22
_MAX_DIMS = 16
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class _Storage(NamedTuple):
    """The memory of one or several tensors."""

    values: torch.Tensor  # flat


class _Tensors:
    """Makes the tensors of one file, from storages whose sizes were checked.

    Args:
        size: of the file in bytes.
        new_storage: the flat tensor of a key, dtype and number of values.
    """

    def __init__(
        self, size: int, new_storage: Callable[[str, torch.dtype, int], torch.Tensor] | None = None
    ) -> None:
        self._left, self._new_storage = _BYTES_PER_BYTE * size, new_storage
        self.storages: dict[str, torch.Tensor] = {}

    def storage(self, pid: Any) -> _Storage:
        """The storage of a persistent id."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise ValueError(f"it refers to a {kind}")
        if key not in self.storages:
            self.storages[key] = self._new_storage(key, dtype, count)
        values = self.storages[key]
        if (values.dtype, len(values)) != (dtype, count):
            raise ValueError(f"storage {key} has two kinds")
        return _Storage(values)

    def known(self) -> dict[tuple[str, str], Any]:
        """Stand-ins for what `torch.save` writes for tensors and plain values."""
        plain = ("_codecs", "encode"), ("__builtin__", "bytes"), ("collections", "OrderedDict")
        return {
            **{name: PLAIN_GLOBALS[name] for name in plain},
            **{(module, "set"): set for module in ("builtins", "__builtin__")},
            **{("torch", f"{name}Storage"): dtype for name, dtype in _DTYPES.items()},
            **{("torch", str(dtype)[6:]): dtype for dtype in _DTYPES.values()},
            ("torch", "Size"): Stand(tuple),
            ("torch", "device"): Stand(torch.device),
            ("torch._utils", "_rebuild_tensor"): Stand(self.rebuild),
            ("torch._utils", "_rebuild_tensor_v2"): Stand(self.rebuild),
            ("torch._utils", "_rebuild_parameter"): Stand(lambda value, *_: value),
        }

    def rebuild(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        """A tensor of a storage; one that reaches beyond it, or repeats its numbers, is an error."""
        shape, steps = tuple(size), tuple(stride)
        if not isinstance(storage, _Storage) or len(shape) != len(steps):
            raise ValueError("a tensor without a storage")
        numbers = (offset, *shape, *steps)
        if not all(type(n) is int and 0 <= n < 2**40 for n in numbers) or len(shape) > _MAX_DIMS:
            raise ValueError(
                f"a tensor of size {reprlib.repr(shape)} and stride {reprlib.repr(steps)}"
            )
        values, count = storage.values, math.prod(shape)
        last = offset + sum((number - 1) * step for number, step in zip(shape, steps))
        if count > len(values) or (count and last >= len(values)):
            raise ValueError(
                f"a tensor of size {shape}, stride {steps} and offset {offset} in a storage of "
                f"{len(values)} numbers"
            )
        self._left -= count * values.element_size()
        if self._left < 0:
            raise ValueError(f"its tensors take more than {_BYTES_PER_BYTE} times its size")
        return values.as_strided(shape, steps, offset)


def _bytes_of(values: torch.Tensor) -> np.ndarray:
    """The memory of a flat tensor; numpy has no bfloat16, and torch 1.10 views types of one size only."""
    same_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.view(same_size[values.element_size()]).numpy().view(np.uint8)


def _read_zip(file: IO[bytes], size: int) -> Any:
    """Read what torch >= 1.6 writes: a zip archive of a pickle and one entry per storage."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next(iter(entries), "").split("/")[0]
        _check_archive(archive.infolist(), root, size)

        def read(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
            entry = entries.pop(f"{root}/data/{key}")
            if entry.file_size != count * torch.empty(0, dtype=dtype).element_size():
                raise ValueError(f"storage {key} has {entry.file_size} bytes, not {count} numbers")
            values = torch.empty(count, dtype=dtype)
            with archive.open(entry) as stream:
                _fill(_bytes_of(values), stream)
            return values

        order = entries.pop(f"{root}/byteorder", None)
        if order is not None and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")
        pickled = archive.read(entries.pop(f"{root}/data.pkl"))
        tensors = _Tensors(size, read)
        content = unpickle(pickled, tensors.known(), tensors.storage)
        for entry in entries.values():  # zipfile compares the CRC-32 at the end of each
            with archive.open(entry) as stream:
                while stream.read(_CHUNK):
                    pass
    return content


def _check_archive(entries: list[zipfile.ZipInfo], root: str, size: int) -> None:
    """Refuse archives that torch.save does not write, before anything is read from them."""
    names = {entry.filename for entry in entries}
    if f"{root}/constants.pkl" in names or any(n.startswith(f"{root}/code/") for n in names):
        raise ValueError("it is a TorchScript program, which is code")
    if f"{root}/data.pkl" not in names:
        raise ValueError("it is an archive without a data.pkl")
    if len(names) != len(entries):
        raise ValueError("two of its entries have the same name")
    if any(entry.compress_type or entry.compress_size != entry.file_size for entry in entries):
        raise ValueError("its entries are compressed, as torch never writes them")
    entries = sorted(entries, key=lambda entry: entry.header_offset)
    ends = [entry.header_offset for entry in entries[1:]] + [size]
    for entry, end in zip(entries, ends):
        if entry.header_offset + 30 + len(entry.filename) + entry.file_size > end:
            raise ValueError(f"entry {entry.filename} overlaps with what follows it")


def _fill(target: np.ndarray, stream: IO[bytes]) -> None:
    for start in range(0, len(target), _CHUNK):
        chunk = stream.read(min(_CHUNK, len(target) - start))
        target[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)


def _read_legacy(content: np.ndarray) -> Any:
    """Read what older ones write: five pickles, and the storages after them.

    Args:
        content: the file, uint8.
    """
    position, room = 0, len(content)

    def next_pickle(known: Mapping[tuple[str, str], Any], storage: Callable | None = None) -> Any:
        nonlocal position
        start, position = position, scan_pickle(content, position)
        return unpickle(content[start:position].tobytes(), known, storage)

    def reserve(key: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        nonlocal room
        room -= count * torch.empty(0, dtype=dtype).element_size()
        if count < 0 or room < 0:
            raise ValueError(f"storage {key} is larger than the file")
        return torch.empty(count, dtype=dtype)

    if next_pickle({}) != _LEGACY_MAGIC or next_pickle({}) != _LEGACY_PROTOCOL:
        raise ValueError("it is a pickle of something else")
    if not next_pickle({})["little_endian"]:
        raise ValueError("its numbers are big-endian")
    tensors = _Tensors(len(content), reserve)
    result = next_pickle(tensors.known(), tensors.storage)
    storages = tensors.storages
    if sorted(keys := next_pickle({})) != sorted(storages):
        raise ValueError("it does not hold the storages that its tensors name")
    for key in keys:
        target = _bytes_of(storages[key])
        numbers = content[position : position + 8].tobytes()
        if int.from_bytes(numbers, "little") != len(storages[key]):
            raise ValueError(f"storage {key} has another size than its tensors say")
        position += 8 + len(target)
        if position > len(content):
            raise ValueError("it is cut off")
        target[:] = content[position - len(target) : position]
    return result


def tensor_globals(size: int) -> dict[tuple[str, str], Any]:
    """Stand-ins for the tensors that a pickle without `torch.save` contains.

    Args:
        size: of the file in bytes.
    """

    def from_bytes(content: bytes) -> Any:
        return _read_legacy(np.frombuffer(content, np.uint8))

    return {
        ("torch._utils", "_rebuild_tensor_v2"): Stand(_Tensors(size).rebuild),
        ("torch.storage", "_load_from_bytes"): Stand(from_bytes),
    }


def _read_safetensors(path: str) -> dict[str, Any]:
    safetensors = _safetensors()
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    weights = safetensors.torch.load_file(path)
    odd = {value.dtype for value in weights.values()} - set(_DTYPES.values())
    if odd:
        raise ValueError(f"it has tensors of {', '.join(map(str, odd))}")
    if "meta" not in metadata:
        return weights
    meta = finished(json.loads(metadata["meta"]), len(metadata["meta"]))
    return {"state_dict": weights, "meta": meta}


def safetensors_bytes(weights: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> bytes:
    """Weights in the format of safetensors; tied weights are stored once for each name.

    Args:
        weights: name -> tensor.
        meta: plain values, stored as JSON under "meta" of the file's `__metadata__`.

    Raises:
        ValueError: the package safetensors is missing.
    """
    own = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    metadata = {"format": "pt", "meta": json.dumps(meta)}
    return _safetensors().torch.save(own, metadata)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ValueError("the package safetensors is missing: pip install safetensors") from None
    return safetensors


def load_weight_file(path: str | os.PathLike[str]) -> Any:
    """Content of a file of `torch.save` or safetensors: tensors and plain Python values only.

    Nothing of it is executed, the CRC-32 of every entry of an archive is compared, and it never takes
    much more memory than its size.

    Args:
        path: the file; its content says which format it has.

    Returns:
        What was saved, on the CPU. Of safetensors the dict of tensors, or {"state_dict", "meta"} where
        the file has our meta.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, empty, damaged, of another format, or holds other objects.
    """
    path = osp.expanduser(path)
    if osp.isdir(path):
        files = sorted(name for name in os.listdir(path) if name.endswith(".pth"))
        raise ValueError(
            f"checkpoint {path} is a folder: name one of its files"
            + (f", such as {osp.join(path, files[-1])}" if files else "; it has no .pth")
        )
    if not osp.isfile(path):
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    with open(path, "rb") as file:
        try:
            return _read(file, path)
        except MemoryError:
            raise
        except Exception as error:  # random bytes can make an unpickler raise anything
            raise ValueError(f"checkpoint {path} {_reason(error)}") from error


def _read(file: IO[bytes], path: str) -> Any:
    start = file.read(512)
    if start[:4] == b"PK\3\4":
        return _read_zip(file, osp.getsize(path))
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if not start:
        raise ValueError("it is empty")
    if start[257:262] == b"ustar":
        raise ValueError("it is a tar archive of torch < 0.4")
    return _read_legacy(np.memmap(path, np.uint8, "r"))


def _reason(error: Exception) -> str:
    foreign = foreign_global(error)
    if foreign is not None and re.match(
        r"torch\._utils\.|torch\.\w+Storage|torch\.storage", foreign
    ):
        return (
            f"holds {foreign}: only dense tensors of real numbers are read, no sparse, quantized or "
            "complex ones; save it again with such tensors"
        )
    if foreign is not None:
        return (
            f"holds a Python object ({foreign}); loading it could run code, so only tensors and plain "
            "values are read: save it again with `meta` made of str, int, float, list and dict"
        )
    reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return (
        f"cannot be read ({reason}): it is damaged, truncated or not a torch file; copy or download it "
        "again"
    )
