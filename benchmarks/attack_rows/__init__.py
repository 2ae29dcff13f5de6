"""Rows of `benchmarks/attacks.py`: what must not harm a run, a user or a machine."""
