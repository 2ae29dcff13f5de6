import multiprocessing
import pickle

import numpy as np
import pytest

from projects.bevformer.nuscenes.info_list import InfoList, column

RECORDS = [{"token": str(i), "boxes": np.full((i, 7), float(i)), "prev": ""} for i in range(5)]


def same(a, b):
    return pickle.dumps(a) == pickle.dumps(b)


def test_reads_like_a_list():
    infos = InfoList(RECORDS)
    assert len(infos) == 5
    assert [info["token"] for info in infos] == list("01234")
    for index in (0, 3, -1, -5, np.int64(2)):
        assert same(infos[index], RECORDS[index])
    assert [info["token"] for info in infos[1:5:2]] == ["1", "3"]
    assert infos[7:] == []
    for index in (5, -6):
        with pytest.raises(IndexError):
            infos[index]


def test_records_are_copies():
    infos = InfoList(RECORDS)
    infos[3]["token"] = "other"
    infos[3]["boxes"][:] = -1
    assert same(infos[3], RECORDS[3])


def test_empty():
    assert list(InfoList([])) == []


def test_pickles():
    assert same(list(pickle.loads(pickle.dumps(InfoList(RECORDS)))), list(InfoList(RECORDS)))


def test_columns_are_kept(monkeypatch):
    infos = InfoList(RECORDS)
    assert column(infos[1:3], "token").tolist() == ["1", "2"]  # a plain list
    monkeypatch.setattr(InfoList, "__getitem__", None)
    assert column(infos, "token").tolist() == list("01234")
    assert len(column(InfoList([]), "token")) == 0


def _own_bytes():
    """Memory in bytes of this process that no other one shares."""
    with open("/proc/self/smaps_rollup") as file:
        sizes = dict(line.split(":") for line in file if "kB" in line)
    return 1024 * sum(int(sizes[key].split()[0]) for key in ("Private_Clean", "Private_Dirty"))


def _read_all(records, results):
    before = _own_bytes()
    for record in records:
        assert record["token"]
    results.put(_own_bytes() - before)


@pytest.mark.parametrize(("shared", "limit"), [(True, 0.1), (False, None)])
def test_forked_workers_share_the_records(shared, limit):
    """The second case shows that the measurement sees what a plain list costs."""
    records = [
        {"token": f"{i}", "sweeps": [{"name": f"{i}-{j}"} for j in range(30)]}
        for i in range(10_000)
    ]
    size = InfoList(records).nbytes
    records = InfoList(records) if shared else records
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    worker = context.Process(target=_read_all, args=(records, results))
    worker.start()
    grown = results.get()
    worker.join()
    if shared:
        assert grown < max(limit * size, 1_000_000)
    else:
        assert grown > 0.2 * size
