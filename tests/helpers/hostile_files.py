"""Files that try to run code, to crash a reader or to fill the memory, and how to measure that."""

import contextlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import torch

MIB = 2**20


class Calls:
    """Unpickles by calling a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@contextlib.contextmanager
def bounded_memory(size):
    """The block may not take more memory than 8 times the size of a file and 24 MiB."""
    before = _memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # starts VmHWM again
    yield
    taken = _memory("VmHWM") - before
    assert taken <= 8 * size + 24 * MIB, f"{taken / MIB:.0f} MiB for a file of {size / MIB:.2f}"


def _memory(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def hostile_pickles(trap):
    """Name -> content, for readers of any pickle.

    Args:
        trap: a folder that is made if one of them runs.
    """
    runs = Calls(os.mkdir, str(trap))
    fields = {
        "value": {"infos": runs},
        "key": {("a", runs): 1},
        "in a list": {"infos": [{"token": [runs]}], "metadata": {"version": "v1.0-mini"}},
        "object array": np.array([runs, 1], dtype=object),
    }
    laughs = []
    for _ in range(40):
        laughs = [laughs, laughs]
    cycle = []
    cycle.append(cycle)
    found = {
        f"runs {name}, protocol {protocol}": pickle.dumps(value, protocol=protocol)
        for name, value in fields.items()
        for protocol in range(6)
    }
    found.update(
        {
            "runs by its name": b"cos\nmkdir\n(S'%s'\ntR." % str(trap).encode(),
            "runs by a dotted name": b"\x80\x04\x8c\x02os\x8c\x0dpath.basename\x93.",
            "instance": b"(S'%s'\nios\nmkdir\n." % str(trap).encode(),
            "memo of 16 GiB": b"\x80\x02]r\xff\xff\xff\x7f.",
            "memo in text": b"\x80\x00]p2000000000\n.",
            "frame of 8 EiB": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
            "text of 2 GiB": b"\x80\x02X\xff\xff\xff\x7fa.",
            "bytes of 8 GiB": b"\x80\x04\x8e" + struct.pack("<Q", 2**33) + b"a.",
            "bytearray of 8 GiB": b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"a.",
            "bytearray of zeros": pickle.dumps(Calls(bytearray, 2**33)),
            "array of 8 GiB": pickle.dumps(Calls(np.ndarray, (2**30,))),
            "array without content": pickle.dumps(
                Calls(np.core.multiarray._reconstruct, np.ndarray, (2**30,), b"b")
            ),
            "array of a lying shape": _array_with_state((1, (2**40,), np.dtype("f8"), False, b"")),
            "array of a negative shape": _array_with_state(
                (1, (-1,), np.dtype("f8"), False, bytes(8))
            ),
            "dtype with fields": pickle.dumps(
                np.zeros(1, dtype=[("x", "O"), ("y", "f8")]), protocol=2
            ),
            "dtype of a lying size": pickle.dumps(np.zeros(2, "U3"), protocol=2).replace(
                b"K\x0cK\x04", b"K\xffK\x04"
            ),
            "sets, a byte each": b"\x80\x04(" + b"\x8f" * MIB + b"l.",
            "lists, a byte each": b"(" + b"]" * 4 * MIB + b"l.",
            "tuples in tuples as a key": b"}(N" + b"\x85" * 200_000 + b"Nu.",
            "lists in lists": b"]" * 5000 + b"a" * 4999 + b".",
            "billions of values": pickle.dumps({"infos": laughs, "metadata": laughs}),
            "holds itself": pickle.dumps({"infos": cycle, "metadata": cycle}),
            "changes a stand-in": b"\x80\x02cnumpy\ndtype\nN}X\x09\x00\x00\x00_functionNs\x86b.",
            "number of 100,000 digits": b"L" + b"9" * 100_000 + b"L\n.",
            "long names": b"c" + b"a" * MIB + b"\n" + b"b" * MIB + b"\n.",
            "long dtype": pickle.dumps(Calls(np.dtype, "f" * MIB)),
            "long shape": _array_with_state((1, (1,) * 10**5, np.dtype("f8"), False, b"")),
            "no pickle": bytes(range(256)),
            "stack is empty": b"e.",
            "empty": b"",
        }
    )
    return found


def _array_with_state(state):
    array = Calls(np.core.multiarray._reconstruct, np.ndarray, (0,), b"b")
    content = pickle.dumps((array, state), protocol=2)
    assert (
        content[-4:-2] == b"\x86q"
    )  # the two become a tuple: let the second be the state of the first
    return content[:-4] + b"b."


def hostile_weights(trap):
    """Name -> content, for readers of weight files.

    Args:
        trap: a folder that is made if one of them runs.
    """
    runs, weight = Calls(os.mkdir, str(trap)), torch.arange(1000.0)
    good = {"state_dict": {"head.weight": weight}, "meta": {"epoch": 1}}
    found = hostile_pickles(trap)
    for name, content in {
        "meta": {**good, "meta": {"config": runs}},
        "optimizer": {**good, "optimizer": [runs]},
        "weights": {"state_dict": {"head.weight": runs}},
        "key": {"state_dict": {runs: weight}},
        "other key": {**good, "x": runs},
    }.items():
        found[f"runs in {name}"] = _saved(content)
        found[f"runs in {name}, old format"] = _saved(content, old=True)
    found["runs in the header of the old format"] = pickle.dumps(runs) + _saved(good, old=True)
    for name, value in {
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.ones(3, dtype=torch.complex64),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "numpy": np.ones(3),
        "expanded": torch.zeros(1).expand(2**30),
        "overlapping": torch.zeros(2**10).as_strided((2**5, 2**10 - 2**5), (1, 1)),
    }.items():
        found[f"{name} weights"] = _saved({"state_dict": {"head.weight": value}})
        found[f"{name} weights, old format"] = _saved({"state_dict": {"a": value}}, old=True)
    found["number as a key"] = _saved({"state_dict": {1: weight}})
    found["99 views of one storage"] = _saved(
        {"state_dict": {str(i): weight[:999] for i in range(99)}}
    )
    found["module"] = _saved(torch.nn.Linear(2, 2))
    found.update(_lying_archives(good))
    found.update(_lying_old_files(good))
    found.update(_hostile_safetensors())
    array, arrays = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([runs], dtype=object))
    np.savez(arrays, x=np.array([runs], dtype=object))
    found.update({"npy": array.getvalue(), "npz": arrays.getvalue(), "text": b"weights\n" * 99})
    return found


def _saved(content, old=False):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def rezipped(content, change=None, compression=zipfile.ZIP_STORED, more=()):
    """An archive of torch.save with changed entries.

    Args:
        content: bytes of the archive.
        change: name without the root, bytes -> bytes.
        compression: of zipfile.
        more: (name, bytes) of further entries.
    """
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        entries = [(name[len(root) + 1 :], old.read(name)) for name in old.namelist()]
        for name, data in [*entries, *more]:
            new.writestr(f"{root}/{name}", change(name, data) if change else data, compression)
    return target.getvalue()


def _lying_archives(good):
    whole = _saved(good)
    start = whole.index(torch.arange(1000.0).numpy().tobytes())
    flipped = bytearray(whole)
    flipped[start + 100] ^= 4
    lost = whole[:start] + bytes(512) + whole[start + 512 :]
    size = b"M\xe8\x03"  # 1000, as a number of storages and as a size of tensors

    def in_pickle(old, new, count=-1):
        def change(name, data):
            assert name != "data.pkl" or old in data
            return data.replace(old, new, count) if name == "data.pkl" else data

        return rezipped(whole, change)

    million = io.BytesIO()
    with zipfile.ZipFile(million, "w") as archive:
        for number in range(20_000):
            archive.writestr(f"archive/{number}", b"")
    script = [("constants.pkl", b"\x80\x02)."), ("code/__torch__.py", b"import os")]
    zeros = _saved({"state_dict": {"head.weight": torch.zeros(8 * MIB)}})
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("../../escaped")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return {
        "a bit flipped": bytes(flipped),
        "a lost block": lost,
        "cut off": whole[:-200],
        "half": whole[: len(whole) // 2],
        "storage that lies": in_pickle(size, b"J\xff\xff\xff\x7f"),
        "tensor that lies": in_pickle(b"K\x00" + size, b"K\x00J\xff\xff\xff\x7f"),
        "tensor with an offset": in_pickle(b"K\x00" + size, b"K\x01" + size),
        "tensor with a negative offset": in_pickle(b"K\x00" + size, b"J\xff\xff\xff\xff" + size),
        "tensor with a negative stride": in_pickle(b"K\x01\x85", b"J\xff\xff\xff\xff\x85"),
        "TorchScript": rezipped(whole, more=script),
        "compressed": rezipped(zeros, compression=zipfile.ZIP_DEFLATED),
        "another entry, compressed": _with_compressed_entry(whole),
        "big-endian": rezipped(
            whole,
            lambda name, data: b"big" if name == "byteorder" else data,
            more=[] if b"byteorder" in whole else [("byteorder", b"big")],  # torch 1.10 has none
        ),
        "many entries": million.getvalue(),
        "entries that overlap": _overlapping(),
        "empty archive": b"PK\x03\x04" + bytes(100),
        "tar": tar.getvalue(),
    }


def _with_compressed_entry(whole):
    file = io.BytesIO(whole)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/bomb", bytes(32 * MIB))
    return file.getvalue()


def _overlapping():
    """All storages are the same bytes of the file: 2,000 times its size."""
    tensors = {str(i): torch.zeros(1000) for i in range(200)}
    whole = rezipped(_saved({"state_dict": tensors}))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = [entry for entry in archive.infolist() if "/data/" in entry.filename]
        directory = archive.start_dir
    content = bytearray(whole)
    for entry in entries[1:]:
        # The central directory points to the first entry of all of them.
        name = entry.filename.encode()
        place = content.index(name, directory)
        content[place - 4 : place] = struct.pack("<I", entries[0].header_offset)
    return bytes(content)


def _lying_old_files(good):
    whole = _saved(good, old=True)
    size = b"M\xe8\x03"
    huge = b"J\xff\xff\xff\x7f"
    assert whole.count(size) == 2
    return {
        "old format: sizes that lie": whole.replace(size, huge),
        "old format: tensor that lies": huge.join(whole.rsplit(size, 1)),
        "old format: storage that lies": whole.replace(size, huge, 1),
        "old format: cut off": whole[:-100],
        "old format: another length": whole.replace(
            struct.pack("<q", 1000), struct.pack("<q", 2**50)
        ),
    }


def safetensors_file(header, data=b"", length=None):
    """A file of this format, whose header need not be true."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _hostile_safetensors():
    def tensor(start, end, shape, dtype="F32"):
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    data = bytes(4000)
    deep = b'{"__metadata__": {"meta": "%s"}}' % (b"[" * 5000)
    return {
        f"safetensors: {name}": content
        for name, content in {
            "length of the header lies": safetensors_file({"a": tensor(0, 8, [2])}, data, 2**40),
            "offsets beyond the end": safetensors_file({"a": tensor(0, 2**33, [2**31])}, data),
            "shape lies": safetensors_file({"a": tensor(0, 4000, [2**31])}, data),
            "overlap": safetensors_file(
                {"a": tensor(0, 4000, [1000]), "b": tensor(0, 4000, [1000])}, data
            ),
            "a gap": safetensors_file({"a": tensor(8, 4000, [998])}, data),
            "shape overflows": safetensors_file({"a": tensor(0, 0, [2**62, 4])}, b""),
            "other numbers": safetensors_file({"a": tensor(0, 4, [4], "F8_E4M3")}, bytes(4)),
            "no JSON": safetensors_file(b"{" * 1000, data),
            "deep JSON": safetensors_file(b'{"a":' * 5000, data),
            "meta is deep": safetensors_file(deep),
            "meta is no JSON": safetensors_file({"__metadata__": {"meta": "{"}}),
            "without a tensor": safetensors_file({}),
            "cut off": safetensors_file({"a": tensor(0, 4000, [1000])}, data[:-1]),
        }.items()
    }


def bomb_picture(width, height):
    """A PNG of a few kilobytes with so many pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    lines = zlib.compress(bytes(MIB), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    )
