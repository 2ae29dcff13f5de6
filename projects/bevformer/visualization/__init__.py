"""Pictures of one sample: the bird's-eye view and the camera images, drawn without a display."""

from projects.bevformer.visualization.bev import draw_bev
from projects.bevformer.visualization.cameras import draw_cameras
from projects.bevformer.visualization.results import load_results
from projects.bevformer.visualization.sample import draw_sample

__all__ = ["draw_bev", "draw_cameras", "draw_sample", "load_results"]
