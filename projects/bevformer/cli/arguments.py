"""Arguments that several tools have."""

from __future__ import annotations

import argparse
import re
from typing import Any, Sequence

_BLANK = re.compile(r"(?<=[^\s,=\[\](]) (?=[^\s,=\[\])])")  # within a text
LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that prints the docstring of a tool unchanged."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_debug_argument(parser: argparse.ArgumentParser) -> None:
    """`--debug`, for `tool_errors`."""
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """`--cfg-options` and `--data-root` of `load_config`, and `--debug`."""
    add_options_argument(
        parser,
        "--cfg-options",
        'override config keys, e.g. data.samples_per_gpu=2 or key="[(a,b),(c,d)]"',
    )
    parser.add_argument(
        "--data-root", help="folder of the data set, instead of those of the config and info files"
    )
    add_debug_argument(parser)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of training and evaluation: those of mmdet3d's tools, and `--device`."""
    add_config_arguments(parser)
    parser.add_argument(
        "--work-dir",
        help="folder for logs and results [work_dirs/<config>; for an evaluation, next to its checkpoint]",
    )
    parser.add_argument("--seed", type=seed, help="random seed; drawn and logged if not given")
    parser.add_argument("--deterministic", action="store_true", help="repeatable algorithms")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none")
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, help="ignored: torchrun sets LOCAL_RANK"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="[cuda if there is one]")
    parser.add_argument("--gpu-id", type=_whole, default=0, help="GPU of a single process")
    parser.add_argument(
        "--gpu-ids", type=_whole, nargs="+", help="deprecated: the first one is used"
    )


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def seed(text: str) -> int:
    """A random seed: numpy takes 32 bits."""
    number = _whole(text)
    if number >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not below 2**32")
    return number


def share(text: str) -> float:
    """A number from 0 to 1, such as a score."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return number


def add_options_argument(parser: argparse.ArgumentParser, flag: str, what: str) -> None:
    """A flag with KEY=VALUE words, which `parse_options` turns into a dict."""
    parser.add_argument(flag, nargs="+", action=_KeepWords, metavar="KEY=VALUE", help=what)


class _KeepWords(argparse.Action):
    """Keeps KEY=VALUE words of all its flags unparsed: mmcv, which reads them, is slow to import."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        for word in values:
            key, equals, _ = word.partition("=")
            if not (key and equals):
                parser.error(f"{option_string} {word}: it must be KEY=VALUE")
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *values])


def parse_options(words: Sequence[str] | None) -> dict | None:
    """The dict of KEY=VALUE words, with the values that mmcv's DictAction reads.

    Blanks within a text stay, which mmcv drops. The last word of a key counts, and has its place in
    the order of the words.

    Raises:
        ValueError: unbalanced brackets.
    """
    if words is None:
        return None
    from mmcv import DictAction

    last = {word.partition("=")[0]: number for number, word in enumerate(words)}
    words = [_BLANK.sub("\0", words[number]) for number in sorted(last.values())]
    namespace = argparse.Namespace()
    try:
        DictAction(["--options"], "options")(None, namespace, words)
    except (AssertionError, RecursionError) as error:
        raise ValueError(f"options {' '.join(words)[:200]}: {error}") from error
    return {key: _with_blanks(value) for key, value in namespace.options.items()}


def _with_blanks(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_with_blanks, value))
    return value.replace("\0", " ") if isinstance(value, str) else value


def merge_deprecated(current: Any, deprecated: Any, flag: str, replacement: str) -> Any:
    """Value of a flag that has an older name.

    Raises:
        ValueError: both are given.
    """
    if deprecated is None:
        return current
    if current is not None:
        raise ValueError(f"{flag} is the older name of {replacement}: give only one of them")
    return deprecated


def chosen_gpu(args: argparse.Namespace) -> int:
    """Index of the GPU that a single process uses."""
    return args.gpu_ids[0] if args.gpu_ids else args.gpu_id
