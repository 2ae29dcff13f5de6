"""How the weights of a file fit a network: names, known prefixes, shapes.

One comparison decides for every way into a network: `load_from`, resume, evaluation, pretrained
weights of a part, and what tools/inspect_checkpoint.py prints.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Iterable, Mapping, Sequence

from torch import Tensor

from projects.bevformer.messages import listed

# What others call a part: mmdet3d's FCOS3D, detectron2's FPN (DD3D), a file of a bare backbone.
_OTHER_NAMES = {
    "img_backbone.": ("backbone.", "backbone.bottom_up.", ""),
    "img_neck.": ("neck.",),
}
_WRAPPERS = ("", "model.", "_orig_mod.")  # Lightning and similar, torch.compile
_EMA = "ema_"  # the copies of mmcv's EMAHook: buffers, whose names cannot have dots


def by_prefix(names: Iterable[str]) -> str:
    """`3 pts_bbox_head.transformer, 1 img_neck.fpn_convs`"""
    counts = Counter(
        f"{_EMA}*" if name.startswith(_EMA) else ".".join(name.split(".")[:2]) for name in names
    )
    return ", ".join(f"{count} {prefix}" for prefix, count in counts.items())


def some_of(names: Iterable[str], count: int = 3) -> str:
    """`318 (conv1.weight, bn1.weight, bn1.bias, ...)`"""
    names = list(names)
    return f"{len(names)} ({listed(names, count)})"


def without_wrapper(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights without a `model.` that all of their names begin with."""
    for wrapper in _WRAPPERS[1:]:
        if weights and all(name.startswith(wrapper) for name in weights):
            return OrderedDict((name[len(wrapper) :], value) for name, value in weights.items())
    return weights


class WeightFit:
    """How the weights of a file fit a network or a part of it, name by name.

    Args:
        weights: name -> tensor of the file.
        own: name in the network -> tensor.
        part: name of the part that all of `own` belong to, such as "img_backbone"; "" for a whole
            network.

    Attributes:
        fitting: OrderedDict name in the network -> tensor of the file, of what can be loaded.
        missing: names in the network only. Old files lack the BatchNorm counters, which are never
            read, so those do not count.
        surplus: names in the file only.
        reshaped: name -> "name is (shape) in the file and (shape) in the model", of the others.
        notes: lines on names that the file spells in another way.
    """

    def __init__(self, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], part: str = ""):
        self.notes: list[str] = []
        self._in_file: dict[str, str] = {}  # name in the network -> name in the file
        self._of, self._part = len(own), part
        if part:
            prefix = f"{part}."
            self._match(weights, own, prefix, (prefix, "", *_OTHER_NAMES.get(prefix, ())))
        else:
            for prefix, others in _OTHER_NAMES.items():
                members = {name: own[name] for name in own if name.startswith(prefix)}
                self._match(weights, members, prefix, (prefix, *others))
            rest = {name: own[name] for name in own if not name.startswith(tuple(_OTHER_NAMES))}
            self._match(weights, rest, "", ("",))
        in_file = {name: self._in_file[name] for name in own if name in self._in_file}
        used = set(in_file.values())
        self.reshaped = {
            name: f"{name} is {tuple(weights[other].shape)} in the file and "
            f"{tuple(own[name].shape)} in the model"
            for name, other in in_file.items()
            if weights[other].shape != own[name].shape
        }
        self.missing = [
            name for name in own if name not in in_file and not name.endswith("num_batches_tracked")
        ]
        self.surplus = [name for name in weights if name not in used]
        self.fitting = OrderedDict(
            (name, weights[other]) for name, other in in_file.items() if name not in self.reshaped
        )

    def _match(
        self,
        weights: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        prefix: str,
        sources: Sequence[str],
    ) -> None:
        """Find the weights of a part in the file: in the spelling in which most of them fit."""
        best, best_count, best_spelling = {}, (0, 0), prefix
        for spelling in [f"{wrapper}{source}" for wrapper in _WRAPPERS for source in sources]:
            for averaged in (False, True):
                found = {}
                for name in own:
                    other = spelling + name[len(prefix) :]
                    other = _EMA + other.replace(".", "_") if averaged else other
                    if other in weights:
                        found[name] = other
                same = sum(own[name].shape == weights[found[name]].shape for name in found)
                if (same, len(found)) > best_count:  # of equals the first: the network's own
                    best, best_count = found, (same, len(found))
                    best_spelling = _EMA + spelling.replace(".", "_") if averaged else spelling
        self._in_file.update(best)
        if best_spelling not in (prefix, ""):
            self.notes.append(f"{best_spelling}* of the file is taken as {prefix}*")
        elif best_spelling != prefix and len(sources) > 1:
            self.notes.append(f"names without a prefix are taken as {prefix}*")

    def left_over(self) -> list[str]:
        """Lines on weights that are not loaded or keep their initial values; empty if all fit."""
        lines = []
        if self.missing:
            lines.append(f"absent from the file: {by_prefix(self.missing)}")
        if self.surplus:
            lines.append(f"absent from the model: {by_prefix(self.surplus)}")
        if self.reshaped:
            lines.append(f"other shape: {by_prefix(self.reshaped)}; {self.first_reshaped()}")
        return lines

    def alarming(self) -> list[str]:
        """Lines on differences that even a partial load should not have; empty if none.

        `load_from` is used for the backbone of a file, `init_cfg` of a part for that part.
        """
        part = self._part or "img_backbone"
        missing, reshaped = (
            [name for name in names if name.startswith(f"{part}.")]
            for names in (self.missing, self.reshaped)
        )
        lines = []
        if missing:
            lines.append(
                f"{len(missing)} weights of {part} are absent from the file ({by_prefix(missing)}), "
                f"for example {missing[0]}: they keep their initial values"
            )
        if reshaped:
            lines.append(
                f"{len(reshaped)} weights of {part} have another shape and keep their initial "
                f"values: {self.reshaped[reshaped[0]]}"
            )
        return lines

    def report(self, path: str | Path, logger: logging.Logger) -> None:
        """Log what was loaded from a file, and what was left over."""
        of = f" of {self._part}" if self._part else ""
        logger.info("%s: %d of %d weights%s loaded", path, len(self.fitting), self._of, of)
        for line in [*self.notes, *self.left_over()]:
            logger.info("%s: %s", path, line)
        for line in self.alarming():
            logger.warning("%s: %s", path, line)

    def first_reshaped(self, count: int = 3) -> str:
        """The first lines of `reshaped`."""
        return "; ".join(list(self.reshaped.values())[:count])
