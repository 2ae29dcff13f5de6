"""Makes the installed mmdet3d 1.0.0rc6 accept mmcv-full 1.7.2, which it refuses but works with.

usage: python requirements/relax_mmdet3d.py     (with the Python of the environment)

Changes one line of mmdet3d/__init__.py; a second run changes nothing. `make setup` runs it.
"""

import importlib.util
import os
import sys
from pathlib import Path

BEFORE = "mmcv_maximum_version = '1.7.0'\n"
AFTER = "mmcv_maximum_version = '1.7.2'  # raised by requirements/relax_mmdet3d.py\n"


def main():
    spec = importlib.util.find_spec("mmdet3d")  # does not run the package
    if spec is None:
        sys.exit(f"error: {sys.executable} has no mmdet3d: run make setup")
    path = Path(spec.origin)
    text = path.read_text()
    if AFTER in text:
        return
    if BEFORE not in text:
        sys.exit(f"error: {path} has no line {BEFORE.strip()!r}: is it mmdet3d 1.0.0rc6?")
    changed = path.with_name(
        "__init__.py.tmp"
    )  # not in place: the file may be a hard link into a cache
    changed.write_text(text.replace(BEFORE, AFTER))
    os.replace(changed, path)
    print(f"{path}: accepts mmcv-full 1.7.2")


if __name__ == "__main__":
    main()
