"""Config files are read as mmcv reads them."""

import sys

import pytest
from mmcv import Config

from projects.bevformer.engine.config import load_config
from projects.bevformer.engine.config_files import ConfigFiles, merged

FILES = {
    "first.py": """
        import os
        from math import sqrt
        def double(x):
            return 2 * x
        sizes = [double(n) for n in (1, 2)]
        names = dict(a=1, nested=dict(b=(1, dict(c=2))))
        model = dict(type="A", part=dict(x=1, y=2), other=dict(z=3), parts=[dict(p=1), dict(p=2)])
        """,
    "second.py": 'folder = "{{ fileDirname }}"\nstem = "{{fileBasenameNoExtension}}{{fileExtname}}"',
    "child.py": """
        _base_ = ["./first.py", "second.py"]
        taken = {{_base_.names.nested}}
        again = [{{ _base_.names.nested.b }}, dict(s={{_base_.sizes}})]
        shared = dict(_delete_=True, q=1)
        model = dict(part=shared, other=shared, new=dict(part=taken))
        """,
    "data.yml": "_base_: child.py\ngiven: {{_base_.sizes}}\nmodel: {other: {q: 2}}\n",
    "data.json": '{"_base_": ["child.py"], "file": "{{fileBasename}}", "model": {"type": "B"}}',
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        lines = text.split("\n")
        path = tmp_path / name
        path.write_text("\n".join(line[8:] if line.startswith(" " * 8) else line for line in lines))
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_the_config_is_that_of_mmcv(folder, name):
    before = list(sys.path), set(sys.modules)
    cfg = load_config(folder / name)
    assert (list(sys.path), set(sys.modules)) == before
    expected = Config.fromfile(str(folder / name))
    values = dict(expected)
    values.pop("sqrt", None)  # mmcv keeps functions of libraries, and `_delete_` in new dicts
    values.get("shared", {}).pop("_delete_", None)
    assert dict(cfg) == values
    assert (cfg.text, cfg.filename) == (expected.text, expected.filename)


def test_values_are_not_shared(folder):
    cfg = load_config(folder / "child.py")
    cfg.model.part.q = 5
    assert cfg.model.other.q == 1


@pytest.mark.parametrize(
    "bases", ['_base_ = ["./" + name for name in ["first.py", "second.py"]]', "_base_ = here + []"]
)
def test_bases_may_be_computed(folder, bases):
    path = folder / "computed.py"
    path.write_text(f"here = ['first.py']\n{bases}\nmore = {{{{_base_.sizes}}}} * 2")
    assert load_config(path).more == [2, 4, 2, 4]
    path.write_text("more = {{_base_.sizes}} * 2\n_base_ = 'first.py'")
    assert load_config(path).more == [2, 4, 2, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = 1\nb = a[0]", r"broken\.py cannot be read \(TypeError\): line 2: .*subscriptable"),
        ("a = (", r"broken\.py cannot be read \(SyntaxError\): .*line 1"),
        ("import sys\nsys.exit(0)", r"broken\.py cannot be read \(SystemExit\): line 2"),
        ("_base_ = 'failing.py'", r"broken\.py .*\(ZeroDivisionError\): line 3 of .*failing\.py: "),
        ("_base_ = 'first.py'\na = {{_base_.b}}", r"\(KeyError\): line 2: \"no base has 'b'"),
        ("_base_ = ['first.py', 'copy.py']", "model, names, sizes are in two bases"),
        ("_base_ = 'first.py'\nsizes = dict(a=1)", r"sizes is a list .*no index 'a'"),
        ("_base_ = 'first.py'\nmodel = dict(type=dict(a=1))", "model.type is 'A' and has no keys"),
    ],
)
def test_faults_are_named_with_their_line(folder, text, says):
    (folder / "failing.py").write_text("\na = 0\nb = 1 / a")
    (folder / "copy.py").write_text((folder / "first.py").read_text())
    (folder / "broken.py").write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        load_config(folder / "broken.py")
    assert "\n" not in str(error.value)


def test_a_missing_base_is_named(folder):
    (folder / "lost.py").write_text("_base_ = ['nowhere.py']")
    with pytest.raises(FileNotFoundError, match=r"config .*lost\.py: its base .*nowhere\.py"):
        load_config(folder / "lost.py")


@pytest.mark.parametrize(
    ("change", "value", "result"),
    [
        (dict(a=dict(b=2)), dict(a=dict(b=1, c=1)), dict(a=dict(b=2, c=1))),
        (dict(a=dict(_delete_=True, b=2)), dict(a=dict(c=1)), dict(a=dict(b=2))),
        (dict(a=dict(_delete_=False, b=2)), dict(a=dict(c=1)), dict(a=dict(b=2, c=1))),
        ({"1": 5}, [1, 2, 3], [1, 5, 3]),
        ({"0": {"b": 5}}, [dict(a=1)], [dict(a=1, b=5)]),
        (dict(a=1), None, dict(a=1)),
        ([1], dict(a=1), [1]),
        ({0: "x"}, {1: "y"}, {1: "y", 0: "x"}),
    ],
)
def test_merging(change, value, result):
    before = repr((change, value))
    assert merged(change, value) == result
    assert repr((change, value)) == before


def test_a_file_is_parsed_once_and_evaluated_as_often_as_needed(folder):
    files = ConfigFiles(folder / "child.py")
    assert files.evaluate({"sizes": [7]})["again"][1]["s"] == [7]
    for path in folder.iterdir():
        path.unlink()
    assert files.evaluate({"sizes": [8]})["again"][1]["s"] == [8]
