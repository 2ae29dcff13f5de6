"""What a test-time stream remembers of its previous frame.

Shape legend: B streams (batch slots), Q BEV queries, C channels.
"""

import numpy as np

from projects.bevformer.geometry.can_bus import CAN_POSITION, CAN_YAW_DEG


class TemporalMemory:
    """Last BEV, ego pose and scene of each batch slot; the only state of inference.

    Frames of a scene must come in time order in the same slot; a new scene token starts afresh.
    """

    def __init__(self):
        self.reset()

    def reset(self):
        """Forget everything, for example before another evaluation."""
        self._bev = None
        self._scene_tokens = []
        self._can_bus = []

    def recall(self, img_metas):
        """What the previous frame means to this one.

        Args:
            img_metas: B metas whose `can_bus` holds absolute position (metres) and yaw (degrees).

        Returns:
            prev_bev: (B, Q, C) or None.
            has_prev: B bools, False where the slot has no earlier frame of the scene.
            relative_metas: copies of the metas with `can_bus` position and yaw relative to the
                previous frame, zero where there is none. The metas given are not edited.
        """
        comparable = self._bev is not None and len(self._scene_tokens) == len(img_metas)
        has_prev, relative_metas = [], []
        for slot, meta in enumerate(img_metas):
            known = comparable and self._scene_tokens[slot] == meta["scene_token"]
            can_bus = np.array(meta["can_bus"], dtype=np.float64)
            if known:
                can_bus[CAN_POSITION] -= self._can_bus[slot][CAN_POSITION]
                can_bus[CAN_YAW_DEG] -= self._can_bus[slot][CAN_YAW_DEG]
            else:
                can_bus[CAN_POSITION] = 0.0
                can_bus[CAN_YAW_DEG] = 0.0
            has_prev.append(known)
            relative_metas.append(dict(meta, can_bus=can_bus))
        return (self._bev if any(has_prev) else None), has_prev, relative_metas

    def remember(self, bev, img_metas):
        """Keep this frame for the next.

        Args:
            bev: (B, Q, C) BEV features.
            img_metas: the B metas as given to `recall`, with absolute poses.
        """
        self._bev = bev.detach()
        self._scene_tokens = [meta["scene_token"] for meta in img_metas]
        self._can_bus = [np.array(meta["can_bus"], dtype=np.float64) for meta in img_metas]
