"""Files of other people: none runs, crashes a reader, or takes much more memory than its size."""

import pytest
from hostile_files import bounded_memory, hostile_pickles, hostile_weights

from projects.bevformer.engine.checkpoint import load_checkpoint
from projects.bevformer.nuscenes.infos import load_infos
from projects.bevformer.visualization.results import load_results

TRAP = "ran"
PICKLES = hostile_pickles(TRAP)
WEIGHTS = hostile_weights(TRAP)
READERS = {
    "weights": (load_checkpoint, "a.pth", "checkpoint a.pth"),
    "info file": (load_infos, "a.pkl", "a.pkl"),
    "results": (lambda path: load_results(path, []), "a.pkl", "a.pkl"),
}


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
    refused(tmp_path, monkeypatch, "weights", WEIGHTS[name])


@pytest.mark.parametrize("reader", ["info file", "results"])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused(tmp_path, monkeypatch, name, reader):
    refused(tmp_path, monkeypatch, reader, PICKLES[name])
