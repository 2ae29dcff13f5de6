#!/usr/bin/env python3
"""Choose the torch build for this machine from the Python version, NVIDIA driver and cards.

    python3 requirements/choose_stack.py [--python 3.11] [--torch 2.10.0]

Prints the arguments for `pip install` in one line and the reason in the next. If nothing fits, it
exits with code 1 and one line on stderr that says what to do. Needs only the standard library and no
GPU.
"""

import argparse
import os
import re
import subprocess
import sys
from typing import NamedTuple, Optional, Tuple

# The only URL besides the package index: the CUDA 11.3 wheels are published nowhere else.
CU113_PAGE = "https://download.pytorch.org/whl/cu113/torch_stable.html"


class Stack(NamedTuple):
    """A supported torch build.

    Attributes:
        torch, torchvision: versions, as pip takes them.
        cuda: version that the wheels were built with.
        pythons: first and last Python version.
        driver: lowest major version of the NVIDIA driver for this CUDA; None for a CPU-only stack.
        sm_lowest: lowest compute capability the wheels have kernels for.
        sm_below: first compute capability that is too new for the wheels; None if there is none.
        find_links: page with the wheels; None if they are on the package index.
    """

    torch: str
    torchvision: str
    cuda: str
    pythons: Tuple[Tuple[int, int], Tuple[int, int]]
    driver: Optional[int]
    sm_lowest: Tuple[int, int]
    sm_below: Optional[Tuple[int, int]]
    find_links: Optional[str]

    @property
    def requirements(self):
        """Requirement lines for pip."""
        return (f"torch=={self.torch}", f"torchvision=={self.torchvision}")

    def runs_on(self, card):
        """Whether the wheels have kernels for a compute capability; None (unknown) passes."""
        if card is None:
            return True
        return self.sm_lowest <= card and (self.sm_below is None or card < self.sm_below)


# Newest first; the first match wins. sm_lowest of torch 2 was read from the torch and torchvision
# wheels; 1.10.0+cu113 is built for sm_37, 50, 60, 70, 75, 80 and 86.
_OLD, _NEW = ((3, 8), (3, 9)), ((3, 10), (3, 12))
STACKS = (
    Stack("2.11.0", "0.26.0", "13.0", _NEW, 580, (7, 5), None, None),
    Stack("2.10.0", "0.25.0", "12.8", _NEW, 525, (7, 0), None, None),
    Stack("1.10.0+cu113", "0.11.1+cu113", "11.3", _OLD, 450, (3, 7), (9, 0), CU113_PAGE),
    # The index has CUDA 10.2 wheels with kernels up to sm_70 only, so this one is for CPUs.
    Stack("1.10.0", "0.11.1", "10.2", _OLD, None, (3, 7), (7, 1), None),
)

# Card name -> compute capability, for drivers too old to report it. Unlisted cards are not checked.
CARDS = (
    (r"K80", (3, 7)),
    (r"M40|M60", (5, 2)),
    (r"P100", (6, 0)),
    (r"P40|P4|GTX 10\d\d|TITAN Xp?", (6, 1)),
    (r"V100\w*|TITAN V", (7, 0)),
    (r"T4|GTX 16\d\d|GeForce RTX 20\d\d|TITAN RTX|Quadro RTX \d+", (7, 5)),
    (r"A100|A800|A30", (8, 0)),
    (r"A40|A10|A16|A2|GeForce RTX 30\d\d|RTX A\d+", (8, 6)),
    (r"L4|L20|L40S?|GeForce RTX 40\d\d|RTX \d+ Ada", (8, 9)),
    (r"GH200|H100|H200|H800|H20", (9, 0)),
)


class StackError(ValueError):
    """No stack fits.

    Attributes:
        problem: what does not fit.
        remedy: how to mend it.
    """

    def __init__(self, problem, remedy):
        super().__init__(f"{problem}. {remedy}.")
        self.problem = problem
        self.remedy = remedy


class Choice(NamedTuple):
    """What to install.

    Attributes:
        stack: Stack.
        reason: in one line.
    """

    stack: Stack
    reason: str


class Machine(NamedTuple):
    """Driver and cards as reported by nvidia-smi.

    Attributes:
        driver: version, or None without a usable NVIDIA driver.
        cards: compute capability (major, minor) of each card, None if unknown.
        note: what else nvidia-smi says, such as an error, else empty.
    """

    driver: Optional[str] = None
    cards: Tuple[Optional[Tuple[int, int]], ...] = ()
    note: str = ""


def choose(python, driver=None, cards=(), torch=None):
    """Choose the stack for a machine.

    Args:
        python: (major, minor).
        driver: version of the NVIDIA driver, such as "535.104.05"; None without one.
        cards: compute capability of each card, None if unknown.
        torch: version requested by the user; skips the checks of driver and cards.

    Returns:
        Choice.

    Raises:
        StackError: no stack fits, or `torch` is not one for this Python.
    """
    stacks = stacks_for(python)
    if torch is not None:
        return _override(stacks, python, driver, cards, torch)
    version = f"Python {_dotted(python)}"
    if driver is None:
        stack = next((s for s in stacks if s.driver is None), stacks[0])
        reason = f"{version} without an NVIDIA driver: torch {stack.torch}"
        if stack.driver is None:
            gpu = " or ".join(f"TORCH={s.torch}" for s in stacks if s.driver)
            reason += f", for CPUs only ({gpu} for GPUs)"
        return Choice(stack, reason)
    for stack in stacks:
        if stack.driver is None or _major(driver) < stack.driver:
            continue
        if not all(map(stack.runs_on, cards)):
            raise StackError(
                f"torch {stack.torch}, the choice for {version} and driver {driver}, has no kernels "
                f"for {_names(card for card in cards if not stack.runs_on(card))}",
                _remedy(python, driver, cards),
            )
        seen = f"driver {driver}" + (f", {_names(cards)}" if any(cards) else "")
        return Choice(
            stack,
            f"{version}, {seen}: torch {stack.torch} with CUDA {stack.cuda} (driver {stack.driver} "
            "or newer)",
        )
    raise StackError(
        f"no torch for {version} runs with NVIDIA driver {driver}", _remedy(python, driver, cards)
    )


def stacks_for(python):
    """Stacks of a Python version, the newest first.

    Raises:
        StackError: there is none.
    """
    stacks = [s for s in STACKS if s.pythons[0] <= tuple(python[:2]) <= s.pythons[1]]
    if not stacks:
        raise StackError(
            f"Python {_dotted(python)} is not supported",
            "Use 3.8 to 3.12: make setup PYTHON=/path/to/python3.11",
        )
    return stacks


def _override(stacks, python, driver, cards, torch):
    stack = next((s for s in stacks if s.torch == torch), None)
    if stack is None:
        raise StackError(
            f"TORCH={torch} is not a supported version for Python {_dotted(python)}",
            f"Use TORCH={' or TORCH='.join(s.torch for s in stacks)}",
        )
    reason = f"TORCH={torch} as requested"
    try:
        own = choose(python, driver, cards)
    except StackError as error:
        return Choice(stack, f"{reason}, although {error.problem}")
    if own.stack != stack:
        reason += f"; the default would be: {own.reason}"
    return Choice(stack, reason)


def _remedy(python, driver, cards):
    """The remedy, in one line, if the stack chosen for the driver does not fit."""
    major = _major(driver)
    mine = stacks_for(python)
    fits = [s for s in STACKS if s.driver is not None and all(map(s.runs_on, cards))]
    ways = [f"make setup TORCH={s.torch}" for s in fits if s in mine and s.driver <= major]
    others = [s for s in fits if s not in mine and s.driver <= major]
    if others and not ways:
        ways.append(_setup_command(others[0]))
    newer = [s.driver for s in fits if s in mine and s.driver > major]
    if newer:
        ways.append(f"update the driver to {min(newer)} or newer")
    elif fits and not ways:
        stack = min(fits, key=lambda s: s.driver)
        ways.append(f"update the driver to {stack.driver} or newer and {_setup_command(stack)}")
    if not any(s in mine and s.driver <= major for s in fits):
        ways += _setup_for_some(mine, major, cards)
    if not ways:
        ways.append("none, no supported torch has kernels for all of these cards")
    # Without --device cpu the tools would choose the GPU, whichever build is installed.
    cpu = next((s for s in mine if s.driver is None), mine[0])
    return (
        f"Remedy: {', or '.join(ways)}; for CPUs only: make setup TORCH={cpu.torch} and run the "
        "tools with --device cpu"
    )


def _setup_for_some(stacks, major, cards):
    """How to use the largest number of cards that one of the stacks fits; empty if there is none."""
    usable = [
        (s, [card for card in cards if s.runs_on(card)])
        for s in stacks
        if s.driver is not None and s.driver <= major
    ]
    stack, some = max(usable, key=lambda pair: len(pair[1]), default=(None, ()))
    if not some:
        return []
    named = f" ({_names(some)})" if any(some) else ""
    return [
        f"make setup TORCH={stack.torch} with CUDA_VISIBLE_DEVICES set to the other cards{named}"
    ]


def _setup_command(stack):
    return f"make setup PYTHON=/path/to/python{_dotted(stack.pythons[0])} TORCH={stack.torch}"


def wheel_files(stack, python):
    """File names of the torch and torchvision wheels of a stack."""
    tag = "cp{}{}".format(*python[:2])
    return tuple(
        f"{name}-{version}-{tag}-{tag}-linux_x86_64.whl"
        for name, version in (("torch", stack.torch), ("torchvision", stack.torchvision))
    )


def ask_nvidia_smi():
    """Query nvidia-smi for the driver and all cards.

    Returns:
        Machine.
    """
    try:
        code, lines = _query("driver_version")
    except FileNotFoundError:
        return Machine()
    except (OSError, ValueError) as error:
        return Machine(note=str(error))
    # nvidia-smi exits with 14 for a corrupted infoROM, below a valid answer.
    drivers = [line for line in lines if re.match(r"\d+(\.\d+)+$", line)]
    rest = " ".join(line for line in lines if line not in drivers)[:200]
    problem = f"nvidia-smi failed with code {code} ({rest or 'no output'})" if code else ""
    if not drivers:
        return Machine(note=problem or f"nvidia-smi reports no driver ({rest or 'no output'})")
    return Machine(drivers[0], _ask_capabilities(), problem or rest)


def _ask_capabilities():
    """Compute capability of each card as reported by nvidia-smi, else by name, else None."""
    cards, names = [], []
    try:
        # Cards are lines such as "8.0" and "[N/A]"; old drivers refuse the field.
        lines = _query("compute_cap")[1]
        cards = [_capability(line) for line in lines if re.match(r"\d+\.\d+$|\[", line)]
        if not cards or None in cards:
            lines = _query("name")[1]
            names = [capability_of(line) for line in lines if not re.match(r"WARNING|ERROR", line)]
    except (OSError, ValueError):
        pass  # the cards stay unknown, which passes all checks
    if not cards:
        return tuple(names)
    if len(cards) != len(names):
        return tuple(cards)
    return tuple(card or named for card, named in zip(cards, names))


def _query(field):
    """Exit code of nvidia-smi and the lines that it prints for a field.

    Raises:
        OSError: it cannot be run.
        ValueError: it timed out.
    """
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        run = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,  # noqa: UP021  (Python 3.6 gets as far as the error)
            timeout=30,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError("nvidia-smi timed out after 30 s") from error
    return run.returncode, [line.strip() for line in run.stdout.splitlines() if line.strip()]


def _capability(text):
    match = re.match(r"(\d+)\.(\d+)$", text)
    return (int(match.group(1)), int(match.group(2))) if match else None


def capability_of(name):
    """Compute capability of a well-known card by name, None if the name is not in `CARDS`."""
    for pattern, capability in CARDS:
        if re.search(rf"(?<![A-Za-z0-9])({pattern})(?![A-Za-z0-9])", name):
            return capability
    return None


def _names(cards):
    return " ".join(sorted({"sm_{}{}".format(*card) for card in cards if card is not None}))


def _dotted(version):
    return ".".join(map(str, version[:2]))


def _major(driver):
    return int(driver.split(".")[0])


def _parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="Python version to choose for [the running one]")
    parser.add_argument("--torch", help="use this version; skips the checks of driver and cards")
    parser.add_argument(
        "--keep", metavar="TORCH", help="keep the torch of an existing environment, if supported"
    )
    parser.add_argument(
        "--explain-missing", metavar="TORCH", help="print which wheel files this version needs"
    )
    args = parser.parse_args(argv)
    if args.python is None:
        args.python = sys.version_info[:2]
    else:
        match = re.match(r"(\d+)\.(\d+)(\.\d+)?$", args.python)
        if not match:
            parser.error(f"--python {args.python}: give a version such as 3.11")
        args.python = (int(match.group(1)), int(match.group(2)))
    return args


def main(argv=None):
    args = _parse_args(argv)
    try:
        stacks = {stack.torch: stack for stack in stacks_for(args.python)}
        if args.explain_missing:
            print(_explain_missing(stacks[args.explain_missing], args.python), file=sys.stderr)
            return 0
        if args.keep in stacks:
            choice = Choice(
                stacks[args.keep],
                f"torch {args.keep}, kept from the existing environment (TORCH=auto chooses again)",
            )
        else:
            machine = ask_nvidia_smi()
            if machine.note:
                assumed = "" if machine.driver else "; assuming no GPU"
                print(f"{machine.note}{assumed}", file=sys.stderr)
            choice = choose(args.python, machine.driver, machine.cards, args.torch)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    words = list(choice.stack.requirements)
    if choice.stack.find_links and not os.environ.get("TORCH_FIND_LINKS"):
        words += ["--find-links", choice.stack.find_links]
    print(*words)
    print(choice.reason)
    return 0


def _explain_missing(stack, python):
    files = " and ".join(wheel_files(stack, python))
    folder = os.environ.get("TORCH_FIND_LINKS")
    cause = (
        f"not in TORCH_FIND_LINKS={folder}" if folder else "the page cannot be reached from here"
    )
    return (
        f"error: torch {stack.torch} was not found ({cause}). Download {files} from "
        f"{stack.find_links} on another machine, copy both to a folder DIR, and run "
        f"TORCH_FIND_LINKS=DIR make setup PYTHON=/path/to/python{_dotted(python)} TORCH={stack.torch}"
    )


if __name__ == "__main__":
    sys.exit(main())
