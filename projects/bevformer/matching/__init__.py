"""Assignment of ground truth to object queries, its costs, and the box coder."""

from .box_coder import NMSFreeCoder
from .hungarian_assigner_3d import HungarianAssigner3D
from .match_costs import BBox3DL1Cost, SmoothL1Cost

__all__ = ["BBox3DL1Cost", "HungarianAssigner3D", "NMSFreeCoder", "SmoothL1Cost"]
