"""Files: reading pickles as data, paths of a data set, damaged images, atomic writes.

Depends on NumPy only, so that the doctor can use it in a broken installation.
"""

import contextlib
import os
import os.path as osp
import pickle
from collections import OrderedDict

import numpy as np

_JPEG = b"\xff\xd8"
_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = b"\xff\xd9"
# Code lengths of the Huffman table that cameras use (ITU-T T.81, table K.5). With it, zero bits encode
# blocks that no picture has; with a table made for one picture they may be plain sky.
_STANDARD_TABLE = bytes([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125])
_LOST_BLOCK = bytes(256)  # disks and copies lose 512 bytes at least; pictures have runs of about 8

# Of dtype codes such as "f8", "U12" and "O8"; no structured types, whose state numpy trusts.
_PLAIN_KINDS = "?biufcSUOMm"


def _dtype(code, align, copy):
    """`numpy.dtype` that never hands out numpy's own instance, which the file could then change."""
    if not isinstance(code, str) or code[:1] not in _PLAIN_KINDS:
        raise pickle.UnpicklingError(f"numpy.dtype of {code!r}")
    return np.dtype(code, align=bool(align), copy=True)


def _encode(text, encoding):
    """`codecs.encode` as old protocols use it for bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _numpy_globals():
    reconstruct, _, _ = np.zeros(0).__reduce__()
    scalar, _ = np.float64(0).__reduce__()
    frombuffer, *_ = np.zeros(1).__reduce_ex__(5)
    found = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): _dtype}
    for core in ("numpy.core", "numpy._core"):  # before and after numpy 2
        found[f"{core}.multiarray", "_reconstruct"] = reconstruct
        found[f"{core}.multiarray", "scalar"] = scalar
        found[f"{core}.numeric", "_frombuffer"] = frombuffer
    return found


PLAIN_GLOBALS = {
    **_numpy_globals(),
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): bytes,  # empty ones in old protocols, which use the names of Python 2
    ("builtins", "bytearray"): bytearray,  # protocol 5 keeps arrays in it
    ("collections", "OrderedDict"): OrderedDict,
}


_NAMES = "the file names "


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, known):
        super().__init__(file)
        self._known = known

    def find_class(self, module, name):
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{_NAMES}{module}.{name}") from None


def load_plain(path, what, remedy, more_globals=None):
    """Read a pickle file of plain values: str, numbers, lists, dicts and numpy arrays.

    Args:
        path: the file; it exists.
        what: what it should be, for messages.
        remedy: how to get a good one, for messages.
        more_globals: dict of (module, name) -> stand-in, for what else the file may name.

    Returns:
        What the file holds.

    Raises:
        ValueError: the file is truncated, not a pickle, or names anything that is not listed; the
            message names it. Nothing of it has been run.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, {**PLAIN_GLOBALS, **(more_globals or {})}).load()
    except Exception as error:  # random bytes can make an unpickler raise anything
        if str(error).startswith(_NAMES):
            foreign = str(error)[len(_NAMES) :]
            raise ValueError(
                f"{path} is not read: it names {foreign}, and a pickle that does can run code; {what} "
                f"holds plain values and numpy arrays alone: {remedy}"
            ) from error
        raise ValueError(
            f"{path} is not {what} ({type(error).__name__}: {error}): it is truncated or of another "
            f"kind; {remedy}"
        ) from error


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

    damage = jpeg_damage(content)
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
