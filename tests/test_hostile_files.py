"""Files of other people: none runs, crashes a reader, or takes much more memory than its size."""

import ast
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hostile_files import bomb_picture, bounded_memory, hostile_pickles, hostile_weights

from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.files.data_files import decode_image
from projects.bevformer.files.pickle_scan import scan_pickle
from projects.bevformer.nuscenes.can_bus import SceneCanBus
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.nuscenes.table_rows import Table
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


JSONS = {
    "deep": "[" * 100_000,
    "deep, whole": '{"meta": {}, "results": ' + "[" * 5000 + "]" * 5000 + "}",
    "number of 100,000 digits": '{"meta": {}, "results": {"a": [{"translation": [%s]}]}}' % ("9" * 10**5),
    "not a number": '{"meta": {}, "results": {"a": NaN}}',
    "infinite times": '[{"utime": 1e999, "token": 1e999}]',
    "number for a token": '[{"utime": "x", "token": 1, "name": 2}]',
    "long text": '{"meta": {}, "results": {"a": [{"sample_token": "a", "translation": "%s"}]}}' % (
        "a" * 10**6
    ),
    "lists, three bytes each": "[" + "[]," * 2**21 + "[]]",
    "another form": "1",
    "not UTF-8": "\udcff\udcfe",
    "a pickle": pickle.dumps([1], protocol=0).decode(),
}  # fmt: skip
JSON_READERS = {
    "results": lambda path: load_results(path, [{"token": "a"}]),
    "CAN bus": lambda path: SceneCanBus(".", "a"),
    "table": lambda path: Table(".", "a_pose").index(lambda row: row),
}


@pytest.mark.parametrize("reader", JSON_READERS)
@pytest.mark.parametrize("name", JSONS)
def test_json_is_refused(tmp_path, monkeypatch, name, reader):
    monkeypatch.chdir(tmp_path)
    content = JSONS[name].encode("utf-8", "surrogateescape")
    (tmp_path / "a_pose.json").write_bytes(content)
    with bounded_memory(len(content)), pytest.raises(ValueError, match="a_pose") as caught:
        JSON_READERS[reader]("a_pose.json")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [
        (np.zeros((2, 9)), [1]),
        ("boxes", "scores"),
        (None, None),
        ([[1, 2]], {}),
    ],
)
def test_results_of_another_form_are_refused(tmp_path, boxes, scores):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([{"pts_bbox": [boxes, scores]}]))
    with pytest.raises(ValueError, match=r"a\.pkl is not a list of dicts with 'pts_bbox'"):
        load_results(tmp_path / "a.pkl", [{"token": "a"}])


# Calls that unpickle, evaluate or fetch: function -> files that may use it, and why.
RUNS_CODE = {
    "exec": {"projects/bevformer/engine/config_files.py"},  # Python configs are code
    "eval": set(),
    "compile": {"projects/bevformer/engine/config_files.py"},
    "pickle.load": set(),
    "pickle.loads": {"projects/bevformer/nuscenes/info_list.py"},  # bytes made in this process
    **dict.fromkeys(
        "torch.load torch.jit.load torch.hub.load torch.hub.load_state_dict_from_url np.load mmcv.load "
        "yaml.load yaml.unsafe_load yaml.full_load mmcv.Config.fromfile Config.fromfile "
        "Config.fromstring joblib.load marshal.loads shelve.open cv2.imread mmcv.imread".split(),
        set(),
    ),
}


@pytest.mark.parametrize("folder", ["projects", "tools", "benchmarks"])
def test_no_other_code_unpickles_or_evaluates(folder):
    root = Path(__file__).parents[1]
    for path in sorted((root / folder).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith("benchmarks/attack"):  # they make such files
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = _dotted(node.func)
                assert name in RUNS_CODE.get(called, {name}), f"{name}:{node.lineno} calls {called}"


def _dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return getattr(node, "id", "")


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 10_000), (10**6, 40)])
def test_pictures_are_measured_before_they_are_decoded(size):
    content = bomb_picture(*size)
    with bounded_memory(len(content)), pytest.raises(ValueError, match="^is too large"):
        decode_image(content)


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
