"""Registers everything of this project; what `custom_imports` of the configs names."""

from projects.bevformer import datasets, model  # noqa: F401
