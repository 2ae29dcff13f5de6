"""Makes `projects` importable from anywhere: pip install --no-deps --no-build-isolation -e ."""

from setuptools import find_namespace_packages, setup

setup(
    name="bevformer",
    version="0.1.0",
    description="BEVFormer for OpenMMLab 1.x without compiled CUDA code",
    license="Apache-2.0",
    python_requires=">=3.8,<3.13",
    packages=find_namespace_packages(include=["projects*"]),
)
