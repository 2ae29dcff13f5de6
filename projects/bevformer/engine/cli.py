"""What `tools/train.py` and `tools/eval.py` share: flags, and errors without a traceback."""

import contextlib
import re
import sys

from mmcv import DictAction

from projects.bevformer.engine.distributed import LAUNCHERS, get_rank, shut_down
from projects.bevformer.engine.remedies import remedy


def add_common_arguments(parser):
    """Flags of mmdet3d's tools, and `--device` and `--debug`."""
    parser.add_argument("--work-dir", help="folder for logs and results [work_dirs/<config>]")
    parser.add_argument("--seed", type=int, help="random seed; one is drawn and logged without it")
    parser.add_argument("--deterministic", action="store_true", help="repeatable algorithms")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE",
        help='override config keys, e.g. data.samples_per_gpu=2 or key="[(a,b),(c,d)]"',
    )  # fmt: skip
    parser.add_argument(
        "--data-root", help="where the data set lies, whatever the config and the info files say"
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none")
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, help="ignored: torchrun sets LOCAL_RANK"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="[cuda if there is one]")
    parser.add_argument("--gpu-id", type=int, default=0, help="GPU of a single process")
    parser.add_argument("--gpu-ids", type=int, nargs="+", help="deprecated: the first one is used")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def chosen_gpu(args):
    """Index of the GPU that a single process uses."""
    return args.gpu_ids[0] if args.gpu_ids else args.gpu_id


def merge_deprecated(current, deprecated, flag, replacement):
    """Value of a flag that has an older name.

    Raises:
        ValueError: both are given.
    """
    if deprecated is None:
        return current
    if current is not None:
        raise ValueError(f"{flag} is the older name of {replacement}: give only one of them")
    return deprecated


@contextlib.contextmanager
def tool_errors(debug):
    """End the tool with one line for what a user can mend, and leave the process group in any case.

    Args:
        debug: let the traceback through.

    Raises:
        SystemExit: for a ValueError, OSError, FloatingPointError or Ctrl-C without `debug`, and for a
            RuntimeError or MemoryError that `remedy` knows.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            raise
        raise SystemExit(_one_line(_own_message(str(error)))) from None
    except (RuntimeError, MemoryError) as error:
        message = remedy(error)
        if debug or message is None:
            raise
        raise SystemExit(_one_line(message)) from None
    except KeyboardInterrupt:
        if debug:
            raise
        sys.exit(130)  # as shells say it
    finally:
        shut_down()


def _one_line(message):
    return f"error (rank {get_rank()}): {' '.join(message.split())} [--debug shows where]"


def _own_message(text):
    """What an error says; torch puts the traceback of a data loading process before it."""
    in_worker = re.search(r"\nOriginal Traceback .*\n[\w.]+: (.*)", text, re.DOTALL)
    return in_worker.group(1) if in_worker else text
