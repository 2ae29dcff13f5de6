"""Info files and results are read without running anything that they name."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest

from projects.bevformer.files.pickles import load_pickle_restricted


class Calls:
    """Unpickles by calling a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def load(tmp_path):
    def load(content, **options):
        path = tmp_path / "file.pkl"
        path.write_bytes(content)
        return load_pickle_restricted(str(path), "an info file", "write it again", **options)

    return load


VALUES = {
    "text": "a",
    "numbers": [1, 2.5, True, None, b"bytes"],
    "float": np.float32(3),
    "names": np.array(["car", "truck"]),
    "objects": np.array(["car", None], dtype=object),
    "matrix": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 7)),
    "ordered": OrderedDict(a=1),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(load, protocol):
    loaded = load(pickle.dumps(VALUES, protocol=protocol))
    assert list(loaded) == list(VALUES)
    for key, value in VALUES.items():
        if isinstance(value, np.ndarray):
            assert loaded[key].dtype == value.dtype
            np.testing.assert_array_equal(loaded[key], value)
        else:
            assert loaded[key] == value
            assert type(loaded[key]) is type(value)


def test_arrays_written_under_numpy_2(load):
    content = pickle.dumps(np.arange(3), protocol=2)
    content = content.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    assert load(content).tolist() == [0, 1, 2]


def global_opcode(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (pickle.dumps(Calls(eval, "open('ran', 'w')")), r"builtins\.eval"),
        (pickle.dumps([Calls(np.load, "x.npy")]), r"numpy\.load"),
        # A dotted name reaches through an allowed one.
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", r"numpy\.ndarray\.tofile"),
        (global_opcode("os", "system") + b"(S'touch ran'\ntR.", r"os\.system"),
        (global_opcode("posix", "system") + b".", r"posix\.system"),
        (b"(S'touch ran'\nios\nsystem\n.", r"os\.system"),
    ],
)
def test_code_in_pickles_is_named_and_not_run(load, tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=rf"file\.pkl is not read: it names {named}.*write it again"
    ):
        load(content)
    assert not (tmp_path / "ran").exists()


def test_the_file_cannot_change_numpys_own_types(load):
    # dtype("f8", False, False) is numpy's own float64; the state would make it big-endian.
    content = b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x89\x87R(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
    assert load(content) == np.dtype(">f8")
    assert np.dtype("f8").byteorder == "="
    with pytest.raises(ValueError, match="not an info file"):
        load(pickle.dumps(np.zeros(1, dtype=[("x", "f8")])))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        pickle.dumps(VALUES)[:-20],
        bytes(range(256)),
        b"\x80\x02ccodecs\nencode\n.",
        b"\x82\x01.",  # a code of the extension registry
        b"h\x05.",  # a memo that is not there
        pickle.dumps(Calls(bytearray, 10**15)),  # more memory than there is
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 2^63 bytes
    ],
)
def test_other_content_is_refused_with_file_and_remedy(load, content):
    with pytest.raises(ValueError, match=r"file\.pkl is not .*write it again"):
        load(content)
