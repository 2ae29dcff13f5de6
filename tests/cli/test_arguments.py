import argparse

import pytest
from mmcv import DictAction

from projects.bevformer.cli.arguments import (
    add_config_arguments,
    add_options_argument,
    add_run_arguments,
    chosen_gpu,
    parse_options,
)

WORDS = [
    "a=1", "b.c=2.5", "d=true", "e=None", "f=text", "g=1,2", "h=[1,2]", "i=(1,2)",
    "j=[(a,1),(b,2)]", "k=x=y", "l='quoted'", "m=", "n=[]", "o=1e-3",
]  # fmt: skip


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    return parser


def test_options_are_those_of_mmcvs_dict_action(parser):
    theirs = argparse.ArgumentParser()
    theirs.add_argument("--cfg-options", nargs="+", action=DictAction)
    words = ["--cfg-options", *WORDS]
    expected = theirs.parse_args(words).cfg_options
    assert parse_options(parser.parse_args(words).cfg_options) == expected
    assert [type(value) for value in expected.values()][:5] == [int, float, bool, type(None), str]
    assert parse_options(parser.parse_args([]).cfg_options) is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seed", "-1"], "argument --seed: -1 is negative"),
        (["--seed", "1099511627776"], "argument --seed: 1099511627776 is not below 2**32"),
        (["--gpu-id", "-1"], "argument --gpu-id: -1 is negative"),
        (["--gpu-ids", "0", "-2"], "argument --gpu-ids: -2 is negative"),
    ],
)
def test_seeds_and_gpus_that_do_not_exist(words, says, capsys):
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    assert parser.parse_args(["--seed", "4294967295", "--gpu-id", "1"]).seed == 2**32 - 1
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert says in capsys.readouterr().err


def test_blanks_within_a_text_stay():
    words = ["a=./my data/b.pkl", "b=[traffic cone, car]", "c=(1, 2)", 'd=["a b",[c d,e]]']
    assert parse_options(words) == {
        "a": "./my data/b.pkl",
        "b": ["traffic cone", "car"],
        "c": (1, 2),
        "d": ["a b", ["c d", "e"]],
    }


def test_several_flags_add_up_and_the_last_word_of_a_key_counts(parser):
    args = parser.parse_args(["--cfg-options", "a=1", "b=2", "--cfg-options", "c=3", "a=4"])
    assert list(parse_options(args.cfg_options).items()) == [("b", 2), ("c", 3), ("a", 4)]


@pytest.mark.parametrize("word", ["a", "=1"])
def test_words_that_are_not_key_value_are_refused(parser, word, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--cfg-options", "b=1", word])
    assert f"--cfg-options {word}: it must be KEY=VALUE" in capsys.readouterr().err


def test_values_nested_too_deeply_are_refused():
    with pytest.raises(ValueError, match=r"^options a=\[\[\[.*recursion"):
        parse_options(["a=" + "[" * 3000 + "]" * 3000])


def test_unbalanced_brackets_are_named():
    with pytest.raises(ValueError, match=r"a=\[1,\(2\]"):
        parse_options(["a=[1,(2]"])


def test_flags_of_other_names(parser):
    add_options_argument(parser, "--options", "older name")
    args = parser.parse_args(["--options", "a=1"])
    assert (args.options, args.cfg_options) == (["a=1"], None)


def test_the_first_gpu_of_the_deprecated_flag_is_used():
    assert chosen_gpu(argparse.Namespace(gpu_ids=None, gpu_id=3)) == 3
    assert chosen_gpu(argparse.Namespace(gpu_ids=[2, 1], gpu_id=0)) == 2
