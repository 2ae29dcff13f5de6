"""Registers everything of this project when imported, e.g. by `custom_imports` of a config."""

from projects.bevformer import datasets, model  # noqa: F401
