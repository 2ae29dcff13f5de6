"""Names that come from data: as files and in messages."""

import pytest

from projects.bevformer.messages import file_name, printable

TOKEN = "fd8420396768425eabec9bdddf7e64b6"
HOSTILE = [
    *("../../x", "/etc/passwd", "..", ".", "", " ", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "-rf", ".a"),
    *("a:b", "\ud800", "\u202ea", "x" * 300, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 100, "a~b"),
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        TOKEN,
        "scene-0103",
        "drive 7, N\N{LATIN SMALL LETTER O WITH DIAERESIS}rd",
        "best_map_head_IoU",
    ],
)
def test_usual_names_stay(name):
    assert file_name(name, "_bev.png") == f"{name}_bev.png"


@pytest.mark.parametrize("name", HOSTILE)
def test_other_names_are_one_file_in_the_folder(name, tmp_path):
    path = tmp_path / file_name(name, "_camera.png")
    path.write_text("")
    assert list(tmp_path.iterdir()) == [path]
    assert path.name.isprintable()
    assert not path.name.startswith((".", "-"))


def test_different_names_are_different_files():
    names = [*HOSTILE, "a_b", "_a_b", *map(file_name, HOSTILE), "x" * 301]
    assert len({file_name(name).lower() for name in names}) == len(set(names))


def test_control_characters_are_escaped():
    assert printable("a\x1b[31m\r\n\u202eb\ud800 \N{LATIN SMALL LETTER E WITH ACUTE}") == (
        "a\\x1b[31m\\r\\n\\u202eb\\ud800 \N{LATIN SMALL LETTER E WITH ACUTE}"
    )
    assert printable("a\nb\x07", keep="\n") == "a\nb\\x07"
