"""Files of other people: none runs, crashes a reader, or takes much more memory than its size."""

import pickle
import re

import pytest
from hostile_files import bounded_memory, hostile_pickles, hostile_weights

from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.pickle_scan import scan_pickle
from projects.bevformer.visualization.results import load_results

TRAP = "ran"
PICKLES = hostile_pickles(TRAP)
WEIGHTS = hostile_weights(TRAP)
REASONS = {
    "a bit flipped": r"Bad CRC-32 for file 'archive/data/0'\): it is damaged",
    "a lost block": "Bad CRC-32",
    "cut off": "not a zip file",
    "storage that lies": "storage 0 has 4000 bytes, not 2147483647 numbers",
    "tensor that lies": r"size \(2147483647,\), stride \(1,\) and offset 0 in a storage of 1000",
    "tensor with an offset": "offset 1 in a storage of 1000",
    "tensor with a negative stride": r"stride \(-1,\)",
    "expanded weights": r"stride \(0,\) and offset 0 in a storage of 1 numbers",
    "99 views of one storage": "more than 4 times its size",
    "compressed": "entries are compressed",
    "another entry, compressed": "entries are compressed",
    "entries that overlap": "overlaps with what follows it",
    "big-endian": "big-endian",
    "tar": "tar archive",
    "old format: storage that lies": r"storage \d+ is larger than the file",
    "old format: tensor that lies": "in a storage of 1000 numbers",
    "old format: another length": "has another size than its tensors say",
    "sparse weights": "_rebuild_sparse_tensor: only dense tensors of real numbers",
    "complex weights": "ComplexFloatStorage: only dense tensors of real numbers",
    "quantized weights, old format": "_rebuild_qtensor: only dense tensors",
    "number as a key": r"no state_dict of tensors, its keys are 1 \(1\)",
    "module": r"a Python object \(torch.nn.modules.linear.Linear\)",
    "runs in meta": r"a Python object \(\w+.mkdir\); loading it could run code",
    "empty": "it is empty",
    "memo of 16 GiB": "numbers an object that it does not have",
    "sets, a byte each": "its objects would take 264 MiB, it has 1.0 MiB",
    "tuples in tuples as a key": "nested more than 64 deep",
    "billions of values": "stands for many more values than it has bytes",
    "holds itself": "nested more than 64 deep",
    "safetensors: other numbers": "float8|F8",
}
READERS = {
    "weights": (load_checkpoint, "a.pth", "checkpoint a.pth"),
    "info file": (load_infos, "a.pkl", "a.pkl"),
    "results": (lambda path: load_results(path, []), "a.pkl", "a.pkl"),
}


@pytest.fixture(scope="module", autouse=True)
def _compiled_scan():
    """numba itself takes 45 MiB, once."""
    assert scan_pickle(pickle.dumps([b"a" * 300_000])) > 300_000


def refused(tmp_path, monkeypatch, reader, content):
    monkeypatch.chdir(tmp_path)
    load, name, begins = READERS[reader]
    (tmp_path / name).write_bytes(content)
    with bounded_memory(len(content)), pytest.raises(ValueError, match=r"\w") as caught:
        load(name)
    message = str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert message.startswith(begins)
    assert len(message) < 600
    assert "weights_only" not in message
    return message


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_refused(tmp_path, monkeypatch, name):
    message = refused(tmp_path, monkeypatch, "weights", WEIGHTS[name])
    assert re.search(REASONS.get(name, ""), message)


def test_reasons_are_of_files_of_the_table():
    assert REASONS.keys() <= WEIGHTS.keys()


@pytest.mark.parametrize("reader", ["info file", "results"])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused(tmp_path, monkeypatch, name, reader):
    refused(tmp_path, monkeypatch, reader, PICKLES[name])
