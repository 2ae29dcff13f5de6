"""Weight files by URL, or by a name of OpenMMLab such as torchvision://resnet50."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mmcv.runner.checkpoint as mmcv_checkpoint
import torch
from mmcv.runner import CheckpointLoader

from projects.bevformer.files.weights import load_weight_file

_SCHEMES = ("http", "https", "torchvision", "modelzoo", "open-mmlab", "openmmlab", "mmcls")
_mmcv_load = CheckpointLoader.load_checkpoint


def download(source: str) -> Any:
    """Content of a weight file, from torch's cache or downloaded into it once.

    Names are resolved by mmcv; the file is read by `load_weight_file`, which runs no code from it.

    Args:
        source: scheme://...

    Raises:
        ValueError: an unknown scheme or name, the download fails, or see `load_weight_file`.
    """
    scheme, name = source.split("://", 1)
    if scheme not in _SCHEMES:
        raise ValueError(f"weights {source}: {scheme}:// is not one of {', '.join(_SCHEMES)}")
    load_url = mmcv_checkpoint.load_url
    mmcv_checkpoint.load_url = _load_url
    try:
        return _mmcv_load(source, map_location="cpu", logger="silent")
    except KeyError as error:
        raise ValueError(f"weights {source}: {scheme} has no {name}") from error
    finally:
        mmcv_checkpoint.load_url = load_url


def _load_url(url: str, model_dir: str | None = None, map_location: Any = None) -> Any:
    """Replaces mmcv's, which unpickles."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:  # URLError, timeouts, a full disk
            raise ValueError(
                f"weights {url} cannot be downloaded ({getattr(error, 'reason', error)}): copy the "
                "file here and name it, for example --cfg-options model.pretrained.img=FILE"
            ) from error
    return load_weight_file(str(path))
