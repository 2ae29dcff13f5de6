# The default recipe with a BEV of 120 x 120 cells of 0.85 m, about a third as many as at 200 x 200.
_base_ = ["../config.py"]
bev_h = 120
bev_w = 120
