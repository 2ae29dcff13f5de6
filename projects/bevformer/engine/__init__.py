"""Training and evaluation: the only code that uses the Runner, DDP and files of a run.

`compat` comes first, so that every module below can import mmdet3d.
"""

from projects.bevformer import compat  # noqa: F401
