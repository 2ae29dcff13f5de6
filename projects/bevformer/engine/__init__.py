"""Training and evaluation: the only code that knows the Runner, DDP and files.

`compat` comes first: every module below may import mmdet3d because this file ran before it.
"""

from projects.bevformer import compat  # noqa: F401
