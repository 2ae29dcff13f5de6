"""Evaluating some of the scenes of a data set."""

from __future__ import annotations

import os.path as osp
from typing import Any, Sequence

from projects.bevformer.messages import listed
from projects.bevformer.nuscenes.info_list import InfoList, column
from projects.bevformer.nuscenes.table_rows import Table

_NAMED_AT_MOST = 20


def keep_scenes(
    dataset: Any, scenes: Sequence[str] | None = None, fraction: float | None = None
) -> str:
    """Reduce a data set in test mode, in place, to whole scenes; its scores are then marked with `part`.

    Args:
        dataset: has `data_infos`, scene after scene, and `data_root` and `version` for the names.
        scenes: names as in the table "scene", or scene tokens.
        fraction: of the number of scenes, above 0 and at most 1, rounded, but one scene at least. They are
            evenly spaced over the order of the data set, so the same fraction chooses the same scenes.

    Returns:
        a line on what is left.

    Raises:
        ValueError: a scene is not in the data set.
    """
    of_frame = column(dataset.data_infos, "scene_token").tolist()
    tokens = list(dict.fromkeys(of_frame))
    name_of = _scene_names(dataset, tokens)
    if scenes is None:
        count = max(1, round(fraction * len(tokens)))
        chosen = [tokens[int((i + 0.5) * len(tokens) / count)] for i in range(count)]
    else:
        token_of = {**{name_of.get(t, t): t for t in tokens}, **{t: t for t in tokens}}
        unknown = [scene for scene in scenes if scene not in token_of]
        if unknown:
            known = (name_of.get(token, token) for token in tokens)
            raise ValueError(
                f"scene {', '.join(unknown)} is not in {dataset.ann_file}, which has "
                f"{listed(known, _NAMED_AT_MOST)}"
            )
        wanted = {token_of[scene] for scene in scenes}
        chosen = [token for token in tokens if token in wanted]
    kept = [i for i, token in enumerate(of_frame) if token in set(chosen)]
    part = {
        "scenes": [name_of.get(token, token) for token in chosen],
        "of_scenes": len(tokens),
        "samples": len(kept),
        "of_samples": len(of_frame),
    }
    if len(chosen) < len(tokens):
        dataset.data_infos = InfoList(dataset.data_infos[i] for i in kept)
        dataset.part = part
    return (
        f"evaluating {len(chosen)} of {len(tokens)} scenes, {len(kept)} of {len(of_frame)} samples: "
        f"{listed(part['scenes'], _NAMED_AT_MOST)}"
    )


def _scene_names(dataset, tokens):
    """Scene token -> name, of the table "scene" where it exists; info files have tokens only."""
    table = Table(osp.join(dataset.data_root or ".", dataset.version), "scene")
    if not osp.isfile(table.path):
        return {}
    names = table.index(lambda row: row["name"])
    return {token: names[token] for token in tokens if token in names}
