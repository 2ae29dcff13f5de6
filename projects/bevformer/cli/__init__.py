"""What the tools share: arguments, a quiet start, errors in one line.

These modules import neither torch nor OpenMMLab at their head, so that `--help` and a wrong
argument are answered at once.
"""
