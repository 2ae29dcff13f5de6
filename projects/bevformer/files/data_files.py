"""Files of a data set: their paths, and damaged images.

Imports NumPy only, so that the doctor can use it in a broken installation.
"""

from __future__ import annotations

import io
import json
import os.path as osp
from typing import IO, Any

import numpy as np

from projects.bevformer.files.pickle_scan import check_cost

_JPEG = b"\xff\xd8"
_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = b"\xff\xd9"
# Code lengths of the Huffman table that cameras use (ITU-T T.81, table K.5). With it, zero bits
# encode blocks that no picture has; with a table made for one picture they may be plain sky.
_STANDARD_TABLE = bytes([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125])
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
_BYTES_PER_BRACKET = 72
_MAX_PIXELS = 2**25  # 8K video has 7680 x 4320
_LOST_BLOCK = bytes(256)  # disks and copies lose 512 bytes at least; pictures have runs of about 8


def join_root(data_root, path):
    """Where a file of an info record lies.

    Args:
        data_root: folder that paths are relative to; None or "" where there is none.
        path: as in the record. Absolute paths, and relative ones that begin with `data_root`, as
            the original BEVFormer writes them, are returned unchanged.

    Raises:
        ValueError: the path leads out of data_root.
    """
    root = data_root or ""
    if osp.normpath(path).startswith(osp.normpath(root) + osp.sep):
        return path
    joined = osp.join(root, path)  # an absolute path stays unchanged
    if ".." in path and root and osp.relpath(joined, root).split(osp.sep)[0] == osp.pardir:
        raise ValueError(
            f"an info record names the file {path}, which is outside of data_root {root}: write "
            "the info file again with tools/create_data.py"
        )
    return joined


def load_json(file: IO[str], **hooks: Any) -> Any:
    """`json.load`, which makes an object of 64 bytes from two brackets and a comma.

    Raises:
        ValueError: also if the lists and objects would take much more memory than the file.
    """
    text = file.read()
    brackets = text.count("[") + text.count("{")
    check_cost(_BYTES_PER_BRACKET * brackets, len(text))
    return json.loads(text, **hooks)


def jpeg_damage(content):
    """What is wrong with the bytes of an image file, as far as it shows without decoding.

    Decoders fill in grey for what is cut off, and continue with wrong pixels after a lost block.

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


def _size_problem(content: bytes) -> str | None:
    """What is wrong with the size that the header of an image names, for which OpenCV takes memory."""
    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(content), formats=_FORMATS).size
    except Image.DecompressionBombError as error:
        return f"is too large ({error})"
    except Exception:  # damaged headers raise anything
        return "cannot be decoded"
    if width * height > _MAX_PIXELS:
        return f"is too large: {width} x {height} pixels"
    return None


def decode_image(content: bytes, flags: int = -1) -> np.ndarray:
    """Decode an image, refusing what the decoder would fill in with grey.

    Args:
        content: bytes of the file.
        flags: of `cv2.imdecode`; -1 (IMREAD_UNCHANGED) leaves channels and orientation as stored.

    Returns:
        (H, W, 3) uint8 BGR of a usual image; what `cv2.imdecode` returns for others.

    Raises:
        ValueError: with what is wrong, such as "is cut off".
    """
    import cv2

    damage = jpeg_damage(content) or _size_problem(content)
    image = None if damage else cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    if image is None:
        raise ValueError(damage or "cannot be decoded")
    return image


def read_image(path: str, flags: int = -1) -> np.ndarray:
    """Read an image file; arguments and result as in `decode_image`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or not an image.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f"camera image {path} does not exist: check data_root, or unpack the images again"
        )
    with open(path, "rb") as file:
        content = file.read()
    try:
        return decode_image(content, flags)
    except ValueError as error:
        raise ValueError(f"camera image {path} {error}: unpack or download it again") from None
