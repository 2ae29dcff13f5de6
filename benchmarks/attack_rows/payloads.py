"""Files of an enemy: pickles and archives that execute, lie about sizes, or unpack to gigabytes.

Each executes, if anything does, `touch CANARY`.
"""

import gzip
import io
import json
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch


class _Call:
    """Unpickled as the result of a call."""

    def __init__(self, function, *arguments):
        self.how = (function, arguments)

    def __reduce__(self):
        return self.how


def calls(canary):
    """Name -> object whose unpickling executes `touch canary`."""
    shell = f"touch {canary}"
    code = f"__import__('os').system({shell!r})"
    inner = pickle.dumps(_Call(os.system, shell))
    legacy = io.BytesIO()
    torch.save(_Call(os.system, shell), legacy, _use_new_zipfile_serialization=False)
    import functools
    import runpy
    import subprocess

    script = Path(f"{canary}.py")
    script.write_text(f"import os\nos.system({shell!r})\n")
    return {
        "system": _Call(os.system, shell),
        "eval": _Call(eval, code),
        "exec": _Call(exec, code),
        "popen": _Call(subprocess.Popen, ["touch", str(canary)]),
        "runpy": _Call(runpy.run_path, str(script)),
        "partial": _Call(functools.partial(os.system, shell)),
        "inner_pickle": _Call(pickle.loads, inner),
        "torch_bytes": _Call(torch.storage._load_from_bytes, legacy.getvalue()),
        "getattr": _Call(getattr, _Call(__import__, "os"), "system"),
        "numpy_object": np.array([_Call(os.system, shell)], dtype=object),
        "rebuild": _Call(torch._utils._rebuild_parameter, _Call(os.system, shell), True, OrderedDict()),
        "from_type": _Call(
            getattr(torch._tensor, "_rebuild_from_type_v2", torch._tensor._rebuild_from_type),
            *_from_type(shell),
        ),
    }  # fmt: skip


def _from_type(shell):
    if hasattr(torch._tensor, "_rebuild_from_type_v2"):
        return os.system, dict, (shell,), {}
    return os.system, dict, (shell,), {}


def opcodes(canary):
    """Name -> bytes of a pickle written by hand that executes `touch canary`."""
    shell = f"touch {canary}".encode()
    length = struct.pack("<I", len(shell))
    stack = b"\x8c\x02os\x8c\x06system\x93"
    return {
        "protocol_0": b"cposix\nsystem\n(V" + shell + b"\ntR.",
        "inst": b"(V" + shell + b"\niposix\nsystem\n.",
        "obj": b"(cposix\nsystem\nV" + shell + b"\no.",
        "stack_global": b"\x80\x04" + stack + b"X" + length + shell + b"\x85R.",
        "newobj": b"\x80\x02cposix\nsystem\nX" + length + shell + b"\x85\x81.",
        "before_the_end": b"\x80\x02cposix\nsystem\nX" + length + shell + b"\x85R0}.",
        "second_pickle": b"\x80\x02}." + b"cposix\nsystem\n(V" + shell + b"\ntR.",
        "build": b"\x80\x02ctorch\nTensor\n)\x81}X\x01\x00\x00\x00acposix\nsystem\nX"
        + length + shell + b"\x85Rsb.",
        "extension": b"\x80\x02\x82\x01(V" + shell + b"\ntR.",
    }  # fmt: skip


class Storage:
    """A storage of an archive that `archive` writes.

    Args:
        key: name of its entry.
        numel: numbers that the pickle claims.
    """

    def __init__(self, key, numel):
        self.key, self.numel = key, numel


class Claimed:
    """A float tensor with any size, stride and offset."""

    def __init__(self, storage, size, stride=None, offset=0):
        stride = stride or tuple(int(np.prod(size[i + 1 :])) for i in range(len(size)))
        self.how = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.how


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return "storage", torch.FloatStorage, value.key, "cpu", value.numel
        return None


def archive(path, content, storages=(), method=zipfile.ZIP_STORED):
    """A checkpoint as torch.save writes it, except for what it claims.

    Args:
        path: file to write.
        content: what it holds; or the bytes of its pickle.
        storages: key -> bytes, or a number of zero bytes.
        method: of compression.
    """
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=2).dump(content)
        content = buffer.getvalue()
    with zipfile.ZipFile(path, "w", method, compresslevel=9) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/byteorder", "little")
        for key, data in dict(storages).items():
            with file.open(f"archive/data/{key}", "w", force_zip64=True) as entry:
                if isinstance(data, bytes):
                    entry.write(data)
                for _ in range(0 if isinstance(data, bytes) else data >> 20):
                    entry.write(bytes(2**20))
        file.writestr("archive/version", "3\n")
    return path


def weights_of(path):
    """state_dict and meta of a checkpoint, to spoil."""
    from attack_rows.world import load

    content = load(path)
    return {key: content[key] for key in ("state_dict", "meta", "optimizer") if key in content}


def executing_checkpoints(folder, good, canary):
    """Files that execute `touch canary` if something unpickles them.

    Args:
        folder: where to write.
        good: a checkpoint of the dummy task, whose fields they take over.
        canary: file that tells.

    Yields:
        Paths.
    """
    content = weights_of(good)
    for name, call in calls(canary).items():
        for place, spoiled in _places(content, call):
            path = folder / f"{name}_{place}.pth"
            torch.save(spoiled, str(path))
            yield path
            if name in ("system", "numpy_object"):
                path = folder / f"{name}_{place}_legacy.pth"
                torch.save(spoiled, str(path), _use_new_zipfile_serialization=False)
                yield path
    for name, code in opcodes(canary).items():
        pickletools.genops(code)
        path = folder / f"raw_{name}.pth"
        path.write_bytes(code)
        yield path
        yield archive(folder / f"zip_{name}.pth", code)
    call = calls(canary)["system"]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = folder / f"pickle_{protocol}.pth"
        path.write_bytes(pickle.dumps({"state_dict": {}, "x": call}, protocol=protocol))
        yield path
    raw = pickle.dumps(call, protocol=2)
    for name, data in {
        "gzip": gzip.compress(raw),
        "zlib": zlib.compress(raw),
        "safetensors": raw,
    }.items():
        path = folder / f"{name}.{'safetensors' if name == 'safetensors' else 'pth'}"
        path.write_bytes(data)
        yield path
    path = folder / "array.npy"
    np.save(str(path), calls(canary)["numpy_object"], allow_pickle=True)
    yield path.rename(folder / "array_npy.pth")


def _places(content, call):
    """(name, content with the call in one place)."""
    if not isinstance(call, _Call):
        yield "meta", {**content, "meta": {**content["meta"], "array": call}}
        return
    yield "top", call
    yield "further_key", {**content, "further": call}
    yield "meta", {**content, "meta": {**content["meta"], "CLASSES": call}}
    yield "ranks", {**content, "ranks": [call]}
    yield "optimizer", {**content, "optimizer": {**content["optimizer"], "state": call}}
    yield "weight", {**content, "state_dict": {**content["state_dict"], "head.bias": call}}
    state = OrderedDict(content["state_dict"])
    state._metadata = call
    yield "metadata", {**content, "state_dict": state}


def safetensors(path, header, data=b"", length=None):
    """A safetensors file with any header.

    Args:
        path: file to write.
        header: dict, or bytes.
        data: of its tensors.
        length: claimed length of the header.
    """
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(header) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + header + data)
    return path
