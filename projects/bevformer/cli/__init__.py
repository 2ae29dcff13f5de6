"""What the tools share: arguments, a quiet start, errors in one line.

These modules import neither torch nor OpenMMLab at module level, so that `--help` and errors in
arguments appear at once.
"""
