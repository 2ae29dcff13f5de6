"""Measures of the package's own code: sizes, share of validation, widths of methods, import circles.

    python tests/helpers/code_measures.py

prints a table per room (a top-level folder or module of the package) and one per file of the
network.
"""

import ast
import io
import tokenize
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Dict, List, Tuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "projects" / "bevformer"
NAME = "projects.bevformer"
# Features that were added to the package later have rooms of their own, which have no size bound.
LATER_ROOMS = {"api", "export", "analysis", "report", "robustness", "map"}

# (class, method) whose width is fixed by published code and mmdet3d; None stands for any class.
_PUBLISHED = {
    ("BEVFormer", "forward"),
    ("BEVFormerV2", "forward"),
    ("BEVFormerHead", "forward"),
    *(
        (None, name)
        for name in (
            "__init__",
            "get_bboxes",
            "loss",
            "forward_train",
            "forward_test",
            "simple_test",
            "aug_test",
            "extract_feat",
        )
    ),
}
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Measures:
    """Measures of one file.

    Attributes:
        file: path relative to the package.
        lines: all lines.
        code: lines without blanks, comments and docstrings.
        validation: those of the code lines that belong to `raise` and `assert` statements, to `if`
            blocks that only put a message together and raise it, and to functions named check* or
            _check*.
        widths: (number of arguments besides self, "Class.method") of the methods.
        imports: dotted names of what the file imports from the package, at any depth.
    """

    file: str
    lines: int
    code: int
    validation: int
    widths: Tuple[Tuple[int, str], ...]
    imports: Tuple[str, ...]

    @property
    def room(self):
        return self.file.split("/")[0]


def measure(source, file="module.py"):
    """Measures of a source text; `file` is its path relative to the package."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    code = _code_lines(source) - _docstring_lines(nodes)
    validation = {line for node in nodes if _validates(node) for line in _lines(node)}
    return Measures(
        file=file,
        lines=len(source.splitlines()),
        code=len(code),
        validation=len(validation & code),
        widths=tuple(_widths(nodes)),
        imports=tuple(sorted(_imports(nodes, file))),
    )


@lru_cache(maxsize=None)
def measure_package():
    """Tuple of the Measures of all files of the package."""
    files = sorted(path for path in PACKAGE.rglob("*.py"))
    return tuple(
        measure(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix())
        for path in files
    )


def _lines(node):
    return range(node.lineno, node.end_lineno + 1)


def _code_lines(source):
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines


def _docstring_lines(nodes):
    lines = set()
    for node in nodes:
        if isinstance(node, (ast.Module, ast.ClassDef, *_FUNCTIONS)) and ast.get_docstring(node):
            lines.update(_lines(node.body[0]))
    return lines


def _validates(node):
    if isinstance(node, _FUNCTIONS):
        return node.name.lstrip("_").startswith("check")
    if isinstance(node, ast.If):
        *message, last = node.body  # the parts of a message may be put together before it is raised
        return (
            not node.orelse
            and isinstance(last, ast.Raise)
            and all(isinstance(child, (ast.Assign, ast.Raise)) for child in message)
        )
    return isinstance(node, (ast.Raise, ast.Assert))


def _widths(nodes):
    for node in nodes:
        if not isinstance(node, ast.ClassDef) or _is_autograd_function(node):
            continue
        for method in node.body:
            if isinstance(method, _FUNCTIONS) and not (
                {(node.name, method.name), (None, method.name)} & _PUBLISHED
            ):
                yield _width(method), f"{node.name}.{method.name}"


def _is_autograd_function(node):
    return any(getattr(base, "attr", None) == "Function" for base in node.bases)


def _width(method):
    arguments = method.args
    named = [*getattr(arguments, "posonlyargs", []), *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    is_static = any(
        isinstance(decorator, ast.Name) and decorator.id == "staticmethod"
        for decorator in method.decorator_list
    )
    return len(named) + len(starred) - (0 if is_static else 1)


def _imports(nodes, file):
    parts = [*NAME.split("."), *Path(file).parent.parts]
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith(f"{NAME}."))


def import_circles(measures):
    """Groups of modules that import each other, directly or through others.

    The packages that a module lies in are not counted as imported by it.

    Args:
        measures: Measures of all files.

    Returns:
        Sorted lists of dotted names, one per circle.
    """
    graph = _import_graph(measures)
    reachable = {module: _reachable(graph, module) for module in graph}
    circles = {
        tuple(sorted(other for other in reach if module in reachable[other]))
        for module, reach in reachable.items()
        if module in reach
    }
    return sorted(list(circle) for circle in circles)


def _import_graph(measures):
    modules = {_module_name(one.file): one.imports for one in measures}
    return {
        module: {owner for name in names for owner in _owner(name, modules)} - {module}
        for module, names in modules.items()
    }


def _module_name(file):
    parts = [*NAME.split("."), *Path(file).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _owner(name, modules):
    """The module that an imported dotted name is, or that it lies in."""
    candidates = (name, name.rpartition(".")[0])
    return [candidate for candidate in candidates if candidate in modules][:1]


def _reachable(graph, start):
    found, waiting = set(), [start]
    while waiting:
        for module in graph[waiting.pop()] - found:
            found.add(module)
            waiting.append(module)
    return found


def share(measures):
    """Validation lines per code line of several files."""
    return sum(one.validation for one in measures) / max(1, sum(one.code for one in measures))


def by_room(measures):
    """room -> list of Measures."""
    rooms: Dict[str, List[Measures]] = defaultdict(list)
    for one in measures:
        rooms[one.room].append(one)
    return dict(rooms)


def main():
    measures = measure_package()
    row = "{:<44}{:>6}{:>8}{:>8}{:>12}{:>10}".format
    print(row("room", "files", "lines", "code", "validation", "longest"))
    for room, files in [*by_room(measures).items(), ("total", list(measures))]:
        print(
            row(
                room,
                len(files),
                sum(one.lines for one in files),
                sum(one.code for one in files),
                f"{share(files):.1%}",
                max(one.lines for one in files),
            )
        )
    print()
    print(row("file of the network", "", "lines", "code", "validation", "widest"))
    for one in measures:
        if one.room == "model":
            widest = max((width for width, _ in one.widths), default="")
            print(row(one.file, "", one.lines, one.code, f"{share([one]):.1%}", widest))


if __name__ == "__main__":
    main()
