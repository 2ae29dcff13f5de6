"""The one-way rule of the package: who may import whom."""

import ast
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "projects" / "bevformer"
NAME = "projects.bevformer"

# What everyone but geometry and ops may import.
COMMON = {
    *("geometry", "transfer", "compat", "files", "interruption", "jit", "messages", "published"),
}

ALLOWED = {
    "geometry": {"transfer"},
    "ops": {"geometry", "transfer"},
    "model": COMMON | {"ops"},
    "files": {"jit"},
    "nuscenes": COMMON,
    "datasets": COMMON | {"nuscenes"},
    "visualization": COMMON | {"nuscenes"},
    "engine": COMMON | {"ops", "model", "nuscenes", "datasets", "visualization", "plugin"},
    "doctor": COMMON | {"nuscenes", "datasets", "engine", "plugin"},
    "cli": {"engine", "interruption", "messages"},
    "plugin.py": {"model", "datasets"},
    "transfer.py": set(),
    "compat.py": set(),
    "interruption.py": set(),
    "jit.py": set(),
    "messages.py": set(),
    "published.py": set(),
    "__init__.py": set(),
}
MM_PACKAGES = {"mmcv", "mmdet", "mmdet3d", "mmseg", "mmengine"}


def imported_modules(source, package):
    """Dotted names of all modules that a source file imports, wherever in it.

    Args:
        source: text of the file.
        package: dotted name of the package that it lies in, for relative imports.
    """
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            modules |= {f"{module}.{alias.name}" for alias in node.names}
    return modules


def own_parts(modules):
    """The parts of this package (geometry, ops, ...) among dotted names."""
    return {module.split(".")[2] for module in modules if module.startswith(NAME + ".")}


@lru_cache(maxsize=None)
def package_files():
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@lru_cache(maxsize=None)
def modules_of(file):
    package = ".".join((NAME, *Path(file).parent.parts))
    return imported_modules((PACKAGE / file).read_text(encoding="utf-8"), package)


@pytest.mark.parametrize("file", package_files())
def test_imports_go_one_way(file):
    part = file.split("/")[0]
    assert part in ALLOWED, f"{part} has no place in the one-way rule: name it here"
    forbidden = own_parts(modules_of(file)) - ALLOWED[part] - {part}
    assert not forbidden, f"{part} must not import {sorted(forbidden)}"


@pytest.mark.parametrize(
    "file", [file for file in package_files() if file.startswith(("geometry/", "ops/"))]
)
def test_geometry_and_ops_import_nothing_of_openmmlab(file):
    roots = {module.split(".")[0] for module in modules_of(file)}
    assert not roots & MM_PACKAGES


@pytest.mark.parametrize("file", package_files())
def test_the_package_imports_neither_tools_nor_tests(file):
    roots = {module.split(".")[0] for module in modules_of(file)}
    assert not roots & {"tools", "tests", "benchmarks"}


# What the synthetic data set may use of this package.
NEIGHBOUR = PACKAGE.parent / "synthetic_nuscenes"
SHARED = ("geometry", "nuscenes.spec", "files", "jit")


@pytest.mark.parametrize("file", sorted(path.name for path in NEIGHBOUR.glob("*.py")))
def test_the_synthetic_data_set_uses_little_of_the_package(file):
    modules = imported_modules((NEIGHBOUR / file).read_text(encoding="utf-8"), NEIGHBOUR.name)
    shared = tuple(f"{NAME}.{part}" for part in SHARED)
    forbidden = {
        module for module in modules if module.startswith(NAME) and not module.startswith(shared)
    }
    assert not forbidden
    assert "pyquaternion" not in modules


@pytest.mark.parametrize("file", package_files())
def test_the_package_does_not_import_the_synthetic_data_set(file):
    assert not [module for module in modules_of(file) if "synthetic_nuscenes" in module]


def packages_that_import(module):
    """The packages with a file that imports `module` at module level."""
    found = set()
    for file in package_files():
        body = ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body
        for node in body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if module in {name.split(".")[0] for name in names}:
                found.add(file.split("/")[0])
    return sorted(found - {"compat.py"})


@pytest.mark.parametrize("package", packages_that_import("mmdet3d"))
def test_compat_comes_before_mmdet3d(package):
    """It gets mmdet3d past its version check, so a package that imports mmdet3d imports it first."""
    body = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8")).body
    first = next(node for node in body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert first.module == NAME
    assert first.names[0].name == "compat"


def test_all_ways_of_importing_are_seen():
    source = (
        "import mmcv.ops\n"
        "from projects.bevformer import model, ops\n"
        "from projects.bevformer.engine.train import run\n"
        "from ..jit import jit\n"
        "from .boxes import encode\n"
        "def later():\n"
        "    from projects.bevformer.datasets import infos\n"
    )
    modules = imported_modules(source, f"{NAME}.geometry")
    assert "mmcv.ops" in modules
    assert own_parts(modules) == {"model", "ops", "engine", "jit", "geometry", "datasets"}
