"""Files of a data set: where they lie, damage that decoders pass over, and writing them whole."""

import contextlib
import os
import os.path as osp

_JPEG = b"\xff\xd8"
_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = b"\xff\xd9"
# Code lengths of the Huffman table that cameras use (ITU-T T.81, table K.5). With it, zero bits encode
# blocks that no picture has; with a table made for one picture they may be plain sky.
_STANDARD_TABLE = bytes([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125])
_LOST_BLOCK = bytes(256)  # disks and copies lose 512 bytes at least; pictures have runs of about 8


def join_root(data_root, path):
    """Where a file of an info record lies.

    Args:
        data_root: folder that paths are relative to; None or "" where there is none.
        path: as in the record. Absolute paths, and relative ones that begin with `data_root`, as the
            original BEVFormer writes them, are taken as they are.

    Raises:
        ValueError: the path leads out of data_root.
    """
    root = data_root or ""
    if osp.normpath(path).startswith(osp.normpath(root) + osp.sep):
        return path
    joined = osp.join(root, path)  # an absolute path stays as it is
    if ".." in path and root and osp.relpath(joined, root).startswith(osp.pardir):
        raise ValueError(
            f"an info record names the file {path}, which is outside of data_root {root}: write the "
            "info file again with tools/create_data.py"
        )
    return joined


def jpeg_damage(content):
    """What is wrong with the bytes of an image file, as far as that can be told without decoding.

    Decoders fill in grey for what is cut off, and go on with wrong pixels after a lost block.

    Args:
        content: bytes of the file; only JPEG is judged.

    Returns:
        str such as "is cut off", or None.
    """
    if not content:
        return "is empty"
    if not content.startswith(_JPEG):
        return None
    content = content.rstrip(b"\0")  # padding after the end does no harm
    if not content.endswith(_END_OF_IMAGE):
        return "is cut off: a JPEG without its end"
    if _STANDARD_TABLE in content and content.find(_LOST_BLOCK, content.rfind(_START_OF_SCAN)) >= 0:
        return "has lost a part: a block of zeros inside"
    return None


@contextlib.contextmanager
def whole_file(path, mode="w"):
    """Open a file beside `path` that takes its place at the end; until then all is as it was."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
