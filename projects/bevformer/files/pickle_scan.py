"""Walk through the opcodes of a pickle before it is unpickled: does it ask for more than it holds?

A pickle of a few bytes can make Python's unpickler reserve gigabytes (an index into its memo, the
length of a text), and tuples nested very deeply overflow the C stack when they are hashed. The scan
follows stack and memo with the depth of each object in place of the object.
"""

from __future__ import annotations

import functools
import pickletools
from typing import Any

import numpy as np

MAX_DEPTH = 64  # info files have 8 levels, checkpoints 6
BYTES_PER_BYTE = 16  # what objects take in memory; info files have 2 to 4, checkpoints 10
FREE_BYTES = 16 * 2**20  # for small files
_SMALL = 2**18  # up to here Python scans faster than numba loads

_LINE, _LINES, _COUNTED_1, _COUNTED_4, _COUNTED_8, _REFUSED = -1, -2, -3, -4, -5, -6
_GOOD, _CUT, _MALFORMED, _DEEP, _MEMO = range(5)
_PROBLEMS = {
    _CUT: "it is cut off, or an object is longer than the file",
    _MALFORMED: "it is not a pickle",
    _DEEP: f"objects are nested more than {MAX_DEPTH} deep",
    _MEMO: "it numbers an object that it does not have",
}
_KEEPS, _INTO, _WRAPS, _MARK, _POP, _PUT, _MEMOIZE, _GET, _STOP = range(9)


def _tables() -> tuple[list[int], ...]:
    """For each opcode: its argument, what it does, objects taken, whether down to the mark, objects left, cost."""
    argument, action, taken, marked, left, cost = (
        [value] * 256 for value in (_REFUSED, _KEEPS, 0, 0, 0, 0)
    )
    counted = {
        pickletools.TAKEN_FROM_ARGUMENT1: _COUNTED_1,
        pickletools.TAKEN_FROM_ARGUMENT4: _COUNTED_4,
        pickletools.TAKEN_FROM_ARGUMENT4U: _COUNTED_4,
        pickletools.TAKEN_FROM_ARGUMENT8U: _COUNTED_8,
        pickletools.UP_TO_NEWLINE: _LINE,
    }
    actions = {
        **dict.fromkeys("APPEND APPENDS SETITEM SETITEMS ADDITEMS BUILD".split(), _INTO),
        **dict.fromkeys("TUPLE TUPLE1 TUPLE2 TUPLE3 LIST DICT FROZENSET".split(), _WRAPS),
        **dict.fromkeys("REDUCE NEWOBJ NEWOBJ_EX INST OBJ".split(), _WRAPS),
        **dict.fromkeys("PUT BINPUT LONG_BINPUT".split(), _PUT),
        **dict.fromkeys("GET BINGET LONG_BINGET".split(), _GET),
        **{"MARK": _MARK, "POP": _POP, "MEMOIZE": _MEMOIZE, "STOP": _STOP},
    }
    costs = {
        **dict.fromkeys("EMPTY_LIST EMPTY_DICT LIST DICT TUPLE TUPLE1 TUPLE2 TUPLE3".split(), 88),
        **dict.fromkeys("EMPTY_SET FROZENSET REDUCE NEWOBJ NEWOBJ_EX INST OBJ".split(), 256),
    }
    for op in pickletools.opcodes:
        if op.name.startswith("EXT") or op.name in ("NEXT_BUFFER", "READONLY_BUFFER"):
            continue
        code = ord(op.code)
        size = 0 if op.arg is None else op.arg.n
        argument[code] = size if size >= 0 else counted[size]
        if op.name in ("GLOBAL", "INST"):
            argument[code] = _LINES
        action[code] = actions.get(op.name, _KEEPS)
        fixed = [kind for kind in op.stack_before if kind is not pickletools.stackslice]
        marked[code] = int(pickletools.markobject in fixed)
        taken[code] = len(fixed) - marked[code]
        if op.name == "OBJ":
            taken[code] = 0  # its class lies above the mark
        left[code] = len(op.stack_after)
        cost[code] = 8 + costs.get(op.name, 0)
    return argument, action, taken, marked, left, cost


_TABLES = _tables()


def _scan(data, tables, stack, marks, memo):
    """(problem, where it is or the end of the pickle, bytes that its objects take at most).

    `stack`, `marks` and `memo` are scratch, as long as `data`; `memo` is 0 and gets depths plus 1. Plain
    loops on numbers, for numba.
    """
    argument, action, taken, marked, left, costs = tables
    size, position, height, mark_count, memo_count, cost = len(data), 0, 0, 0, 0, 0
    while position < size:
        code = int(data[position])
        position += 1
        kind, what, number = argument[code], action[code], 0
        if kind == _REFUSED:
            return _MALFORMED, position, cost
        if kind >= 0:
            end = position + kind
            if what in (_PUT, _GET):
                for i in range(min(end, size) - 1, position - 1, -1):
                    number = number * 256 + int(data[i])
        elif kind in (_LINE, _LINES):
            end = position
            for _ in range(2 if kind == _LINES else 1):
                while end < size and data[end] != 10:
                    end += 1
                end += 1
            if what in (_PUT, _GET):
                if end - position < 2 or end - position > 11:
                    return _MALFORMED, position, cost
                for i in range(position, end - 1):
                    if data[i] < 48 or data[i] > 57:
                        return _MALFORMED, position, cost
                    number = number * 10 + int(data[i]) - 48
        else:
            width = 1 if kind == _COUNTED_1 else 4 if kind == _COUNTED_4 else 8
            if position + width > size:
                return _CUT, position, cost
            end = position + width
            for i in range(width - 1, -1, -1):
                if number > size:
                    break
                number = number * 256 + int(data[position + i])
            end += number
        if end > size:
            return _CUT, position, cost
        position = end
        cost += costs[code]

        if what == _MARK:
            marks[mark_count] = height
            mark_count += 1
            continue
        floor = marks[mark_count - 1] if mark_count else 0  # objects below a mark are out of reach
        if what == _POP and mark_count and height == floor:
            mark_count -= 1
            continue
        if what in (_PUT, _MEMOIZE):
            if what == _MEMOIZE:
                number = memo_count
            if number > memo_count + 1:
                return _MEMO, position, cost
            if height == floor:
                return _MALFORMED, position, cost
            memo_count += 1 if memo[number] == 0 else 0
            memo[number] = stack[height - 1] + 1
            continue
        depth = 0
        if what == _GET:
            if number >= size or memo[number] == 0:
                return _MEMO, position, cost
            depth = memo[number] - 1
        bottom = height
        if marked[code]:
            if mark_count == 0:
                return _MALFORMED, position, cost
            bottom = floor
            mark_count -= 1
            floor = marks[mark_count - 1] if mark_count else 0
        first = bottom - taken[code]
        if first < floor:
            return _MALFORMED, position, cost
        if what == _STOP:
            return _GOOD, position, cost
        if what in (_INTO, _WRAPS):
            for i in range(first, height):
                inner = stack[i] if what == _INTO and i == first else stack[i] + 1
                depth = max(depth, inner)
            if depth > MAX_DEPTH:
                return _DEEP, position, cost
        elif left[code] and taken[code]:  # DUP and the like
            depth = stack[first]
        height = first
        for _ in range(left[code]):
            stack[height] = depth
            height += 1
    return _CUT, position, cost


@functools.lru_cache(maxsize=None)
def _compiled_scan() -> Any:
    try:
        from projects.bevformer.jit import jit
    except ImportError:  # without numba it takes a minute for an info file
        return _scan
    return jit(_scan)


def scan_pickle(content: Any, start: int = 0) -> int:
    """Check the pickle that begins at a position, without making any of its objects.

    Args:
        content: bytes, or an array of uint8.
        start: where the pickle begins; other things may follow it.

    Returns:
        Where it ends.

    Raises:
        ValueError: it is cut off or malformed, nested too deeply, or its objects would take more
            memory than a file of this size should.
    """
    whole = np.frombuffer(content, np.uint8)[start:]
    data = whole[:_SMALL].tobytes()
    scratch: Any = [[0] * (len(data) + 3) for _ in range(3)]
    problem, end, cost = _scan(data, _TABLES, *scratch)
    if problem == _CUT and len(whole) > len(data):
        tables = tuple(np.array(table, np.int64) for table in _TABLES)
        scratch = [np.zeros(len(whole) + 3, np.int32) for _ in range(3)]
        problem, end, cost = _compiled_scan()(whole, tables, *scratch)
    if problem:
        raise ValueError(_PROBLEMS[problem])
    check_cost(cost, end)
    return start + end


def check_cost(cost: int, size: int) -> None:
    """Raise ValueError if objects of `cost` bytes are too much for a file of `size` bytes."""
    if cost > FREE_BYTES + BYTES_PER_BYTE * size:
        raise ValueError(
            f"its objects would take {cost / 2**20:.0f} MiB, it has {size / 2**20:.1f} MiB"
        )
