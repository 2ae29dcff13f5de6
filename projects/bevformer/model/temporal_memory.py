"""The state of streaming inference: the last BEV and pose of each scene.

Shape legend: B batch, Q BEV queries, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Metas = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SceneState:
    """The latest frame of one scene.

    Attributes:
        bevs: (B, Q, C) BEV features of the batch that the frame was in.
        row: index of the frame in that batch.
        can_bus: (18,) with absolute position and yaw.
        timestamp: seconds, or None where the metas give none.
    """

    bevs: Tensor
    row: int
    can_bus: NDArray[np.float64]
    timestamp: float | None

    def alone(self) -> SceneState:
        """The same without the rest of its batch, whose memory can then be freed."""
        if len(self.bevs) == 1:
            return self
        return replace(self, bevs=self.bevs[self.row : self.row + 1].clone(), row=0)


@dataclass(frozen=True)
class BEVState:
    """States of the scenes by scene token, the latest last. Never modified: `updated` returns a new one.

    Attributes:
        scenes: scene token -> SceneState.
        largest_batch: frames in the largest batch so far.
    """

    scenes: Mapping[str, SceneState] = field(default_factory=dict)
    largest_batch: int = 0

    def read(self, metas: Metas) -> tuple[Tensor | None, list[NDArray[np.float64] | None]]:
        """Return the previous BEV and ego pose of each sample.

        Args:
            metas: B metas with `scene_token`; `timestamp` (seconds) is checked where present, and
                `prev_bev_exists=False` starts a stream anew.

        Returns:
            prev_bev: (B, Q, C), arbitrary in the rows of samples without a previous frame; None where no
                sample has one.
            previous: per sample the (18,) `can_bus` of its previous frame, or None.

        Raises:
            ValueError: a frame is older than the previous frame of its scene.
        """
        states = [self._previous(meta) for meta in metas]
        known = [state for state in states if state is not None]
        previous = [None if state is None else state.can_bus for state in states]
        if not known:
            return None, previous
        bevs = known[0].bevs
        same_batch = len(bevs) == len(metas) and all(
            state is None or (state.bevs is bevs and state.row == row)
            for row, state in enumerate(states)
        )
        if not same_batch:
            rows = [known[0] if state is None else state for state in states]
            bevs = torch.cat([state.bevs[state.row : state.row + 1] for state in rows])
        return bevs, previous

    def _previous(self, meta: Mapping[str, Any]) -> SceneState | None:
        state = self.scenes.get(meta.get("scene_token", ""))
        if state is None or not meta.get("prev_bev_exists", True):
            return None
        now, before = meta.get("timestamp"), state.timestamp
        if now is not None and before is not None and now < before:
            what = f"sample {meta.get('sample_idx')} at {now} s is older than the previous frame"
            how = "call reset_memory() or set prev_bev_exists=False in the meta to start anew"
            raise ValueError(f"{what} of its scene, at {before} s: {how}")
        return state

    def updated(self, metas: Metas, bevs: Tensor, max_scenes: int | None = None) -> BEVState:
        """Remember a frame.

        Args:
            metas: B metas with `scene_token`, absolute `can_bus` and maybe `timestamp`.
            bevs: (B, Q, C) their BEV features.
            max_scenes: number of scenes to keep, those of the latest batches; None is twice the largest
                batch so far. Those of this batch are always kept.

        Raises:
            ValueError: a meta lacks its scene, or two samples are of one scene.
        """
        tokens = [meta.get("scene_token") for meta in metas]
        if None in tokens or len(set(tokens)) != len(tokens):
            what = f"the metas of a batch must name different scenes in scene_token, got {tokens}"
            raise ValueError(f"{what}: test one frame per scene, or set video_test_mode=False")
        largest_batch = max(self.largest_batch, len(tokens))
        limit = max(2 * largest_batch if max_scenes is None else max_scenes, len(tokens))
        scenes: dict[str, SceneState] = {
            token: state.alone() for token, state in self.scenes.items() if token not in tokens
        }
        bevs = bevs.detach()
        for row, meta in enumerate(metas):
            can_bus = np.array(meta["can_bus"], dtype=np.float64)
            timestamp = meta.get("timestamp")
            scenes[meta["scene_token"]] = SceneState(bevs, row, can_bus, timestamp)
        return BEVState(dict(list(scenes.items())[-limit:]), largest_batch)


class TemporalMemory:
    """Holds the state of the test streams between two calls of `BEVFormer.forward`.

    Attributes:
        state: BEVState.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, for example before another evaluation."""
        self.state = BEVState()
