"""Info files: whether they can be read, and fit the tables and the images."""

import os.path as osp
from typing import Any, Iterator, List, Mapping, Sequence

from projects.bevformer.doctor.findings import Finding, broken, error_line, ok, warning

_WRITE_AGAIN = "write it again with tools/create_data.py"


def check_info_files(info_files: Mapping[str, str], data_root: str) -> List[Finding]:
    """Check info files: their content, and that tables and images belong to them.

    Args:
        info_files: label, such as "data.train" or "info file" and a name -> path.
        data_root: nuScenes root.
    """
    findings = []
    for label, path in info_files.items():
        try:
            findings += _check_info_file(label, path, data_root)
        except (ValueError, OSError) as error:
            findings.append(broken(label, error_line(error), ""))
    return findings


def _check_info_file(label: str, path: str, data_root: str) -> List[Finding]:
    from projects.bevformer.datasets.paths import DataPaths, gaps
    from projects.bevformer.files.pickles import load_pickle_restricted
    from projects.bevformer.nuscenes.infos import load_infos
    from projects.bevformer.nuscenes.spec import SPLITS

    infos, metadata = load_infos(path)
    if not infos:
        text = f"{path} holds no frames"
        return [broken(label, text, "no scene of that split was in the tables; see above")]
    stamp = load_pickle_restricted(path, "an info file", "")["metadata"].get("box_convention")
    paths = DataPaths(data_root, infos[0], path)
    findings = [
        *_check_boxes(label, path, stamp, metadata["box_convention"]),
        *_check_origin(label, path, infos, metadata),
        *_check_paths(label, path, infos, data_root),
        *(warning(label, line, _WRITE_AGAIN) for line in gaps(metadata, infos[0], paths)),
    ]
    if metadata["version"] in SPLITS:  # other data sets have no tables
        findings += _check_tokens(label, path, infos, osp.join(data_root, metadata["version"]))
    if not any(finding.level == "broken" for finding in findings):
        text = f"{path}: {len(infos)} frames of {metadata['version']} {metadata.get('split') or ''}"
        findings.insert(0, ok(label, text))
    return findings


def _check_boxes(label: str, path: str, stamp: str, used: str) -> Iterator[Finding]:
    if stamp is None:
        yield warning(
            label,
            f"{path} does not say its box convention; it follows from the shape of the cars",
            f"{_WRITE_AGAIN}, or stamp it (docs/data_format.md)",
        )
    elif stamp != used:
        yield ok(label, f"boxes are {stamp} and are converted when they are read")


def _check_origin(
    label: str, path: str, infos: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]
) -> Iterator[Finding]:
    """What a file of another split, or of another project, lacks."""
    from projects.bevformer.nuscenes.evaluation.ground_truth import has_ground_truth
    from projects.bevformer.nuscenes.spec import SPLITS

    split = metadata.get("split")
    used_as = next((name for name in ("train", "val") if label.startswith(f"data.{name}")), split)
    if split not in (None, used_as):
        text = f"{path} is of the split {split}"
        yield warning(label, text, "check data.*.ann_file of the config")
    if metadata["version"] not in SPLITS:
        return
    if "can_bus_motion_after" not in infos[0]:
        yield warning(
            label,
            f"{path} was not written by this project: its can_bus mixes two messages",
            'tools/create_data.py writes both; the official recipes want can_bus_message="official"',
        )
    can_be_scored = has_ground_truth(infos) and metadata.get("samples_in_split") is not None
    if "gt_boxes" in infos[0] and not can_be_scored:
        text = f"{path} lacks a part of the ground truth: evaluation reads the tables, slowly"
        yield warning(label, text, _WRITE_AGAIN)


def _check_tokens(
    label: str, path: str, infos: Sequence[Mapping[str, Any]], folder: str
) -> Iterator[Finding]:
    """Whether the samples are in the tables; evaluation needs them."""
    from projects.bevformer.nuscenes.table_rows import Table

    if not osp.isdir(folder):
        text = f"{path} is of {osp.basename(folder)}, but there is no {folder}"
        yield broken(label, text, "unpack those tables, or check data_root and ann_file")
        return
    try:
        known = Table(folder, "sample").index(lambda row: None)
    except (ValueError, OSError, LookupError, TypeError):
        return  # already a finding
    unknown = sum(info["token"] not in known for info in infos)
    if unknown:
        text = f"{path}: {unknown} of {len(infos)} samples are not in {folder}"
        yield broken(label, text, _WRITE_AGAIN)


def _check_paths(
    label: str, path: str, infos: Sequence[Mapping[str, Any]], data_root: str
) -> Iterator[Finding]:
    """Whether the images are where the info file says, or below data_root."""
    from projects.bevformer.files.data_files import join_root
    from projects.bevformer.nuscenes.infos import path_below_root

    named = [camera["data_path"] for info in infos for camera in info["cams"].values()]
    missing = [name for name in named if not osp.isfile(join_root(data_root, name))]
    if not missing:
        return
    below = [path_below_root(name) for name in named]
    moved = all(name is not None and osp.isfile(osp.join(data_root, name)) for name in below)
    if moved and len(missing) == len(named):
        text = f"{path} names files of another machine ({missing[0]}); they are found below {data_root}"
        yield warning(label, text, "tools/create_data.py writes relative paths")
    else:
        first = join_root(data_root, missing[0])
        text = f"{path}: {len(missing)} of {len(named)} images do not exist, the first is {first}"
        yield broken(label, text, "check data_root, or unpack the images again")
