"""Name, version and packages for setuptools < 61, which does not read [project] of pyproject.toml.

torch 1.10 needs such an old one (Python 3.8). The version is that of
projects/bevformer/__init__.py.
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

package = Path(__file__).parent / "projects" / "bevformer" / "__init__.py"

setup(
    name="bevformer",
    version=re.search(r'__version__ = "(.+)"', package.read_text()).group(1),
    packages=find_namespace_packages(include=["projects*"]),
)
