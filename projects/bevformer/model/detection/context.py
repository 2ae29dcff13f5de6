"""What all decoder layers share.

Shape legend: B batch, O object queries, R groups of them, Q BEV queries (= Hb * Wb), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ObjectContext:
    """The last argument of decoder layers and of their attention to the BEV.

    Attributes:
        query_pos: (B, R * O, C) positional part of the object queries.
        bev: (B, Q, C) BEV features.
        bev_hw: rows and columns of the BEV grid.
        num_groups: R; queries attend only to queries of their own group.
    """

    query_pos: Tensor
    bev: Tensor
    bev_hw: tuple[int, int]
    num_groups: int = 1
