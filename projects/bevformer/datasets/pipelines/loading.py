"""Reading the camera images of a frame."""

import importlib.util
import os.path as osp

import numpy as np
from mmcv import FileClient
from mmcv.image.io import imread_flags
from mmdet3d.datasets.builder import PIPELINES

from projects.bevformer.datasets.pipelines.step import Step
from projects.bevformer.files.data_files import decode_image, read_image
from projects.bevformer.nuscenes.infos import path_below_root


@PIPELINES.register_module()
class LoadCameraImages(Step):
    """Load one image per camera.

    Arguments and results are those of mmdet3d's LoadMultiViewImageFromFiles, whose answer to a missing or
    broken file is "all input arrays must have the same shape".

    Args:
        to_float32: convert to float32; values stay 0 ... 255.
        color_type: mmcv's flag; channels come in BGR order.
        file_client_args: dict(backend="disk"), or dict(backend="lmdb", db_path=...) for a database of
            encoded images. Its keys are the paths of the records, with data_root or from samples/ on.

    Raises:
        ValueError: another backend, or one that cannot work.
    """

    def __init__(self, to_float32=False, color_type="unchanged", file_client_args=None):
        self.to_float32 = to_float32
        self.color_type = color_type
        self.file_client_args = dict(file_client_args or {})
        check_file_client(self.file_client_args)

    def __call__(self, results):
        """Read `img_filename`; add `filename`, `img`, and the shapes as lists of N (H, W, 3).

        Raises:
            FileNotFoundError: an image does not exist.
            ValueError: an image cannot be decoded, is damaged, has other than 3 channels or another size
                than the first, than `image_size` says, or one that does not fit `cam2img`.
        """
        filenames = list(results["img_filename"])
        images = [self._read(filename) for filename in filenames]
        for filename, image in zip(filenames, images):
            _check_kind(filename, image)
            if image.shape != images[0].shape:
                raise ValueError(
                    f"camera image {filename} is {image.shape}, but {filenames[0]} is {images[0].shape}: "
                    "all cameras of a frame must have one size"
                )
        sizes = results.get("image_size", [None] * len(images))
        for filename, image, matrix, size in zip(
            filenames, images, results.get("cam2img", ()), sizes
        ):
            _check_size(filename, image, matrix, size)
        if self.to_float32:
            images = [image.astype(np.float32) for image in images]
        shapes = [image.shape for image in images]
        results.update(
            filename=filenames,
            img=images,
            img_shape=shapes,
            ori_shape=shapes,
            pad_shape=shapes,
            scale_factor=1.0,
            img_norm_cfg={
                "mean": np.zeros(3, dtype=np.float32),
                "std": np.ones(3, dtype=np.float32),
                "to_rgb": False,
            },
        )
        return results

    def _read(self, filename):
        flags = imread_flags.get(self.color_type, self.color_type)
        if self.file_client_args.get("backend", "disk") == "disk":
            return read_image(filename, flags)
        client = FileClient(**self.file_client_args)  # mmcv keeps one for the same arguments
        keys = [key for key in (filename, path_below_root(filename)) if key]
        content = next(filter(None, map(client.get, keys)), None)
        database = self.file_client_args["db_path"]
        if content is None:
            raise FileNotFoundError(
                f"camera image {filename} is not in {database}, neither of the keys {keys}"
            )
        try:
            return decode_image(bytes(content), flags)
        except ValueError as error:
            raise ValueError(
                f"camera image {filename} in {database} {error}: write it to the database again"
            ) from None


def check_file_client(args):
    """Refuse `file_client_args` other than `LoadCameraImages` takes."""
    backend = args.get("backend", "disk")
    if backend not in ("disk", "lmdb") or (backend == "disk" and set(args) - {"backend"}):
        raise ValueError(
            f"file_client_args is {args}: images are read with dict(backend='disk') or "
            "dict(backend='lmdb', db_path=...), no other backend or argument; copy the files to a disk"
        )
    if backend == "lmdb" and importlib.util.find_spec("lmdb") is None:
        raise ValueError("file_client_args names lmdb, whose package is missing: pip install lmdb")
    if backend == "lmdb" and not osp.exists(args.get("db_path", "")):
        raise ValueError(
            f"file_client_args names lmdb, but its db_path {args.get('db_path')!r} does not exist"
        )


def _check_kind(filename, image):
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"camera image {filename} is {image.shape} {image.dtype}, not (height, width, 3) uint8: use "
            "the original images"
        )


def _check_size(filename, image, cam2img, recorded):
    """Refuse images of another size than the info file means, by which the matrices would be wrong."""
    height, width = image.shape[:2]
    x, y = cam2img[0][2], cam2img[1][2]
    if recorded is not None:
        good, means = recorded == (width, height), "the info file says {} x {}".format(*recorded)
    else:
        good = 0 < x < width and 0 < y < height
        means = f"cam_intrinsic has its centre at ({x:.0f}, {y:.0f})"
    if not good:
        raise ValueError(
            f"camera image {filename} is {width} x {height}, but {means}: images and info file are of "
            "different sizes; use the original images, and scale them in the pipeline"
        )
