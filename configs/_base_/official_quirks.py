# What the official weights were trained with and depend on (docs/checkpoint_compatibility.md): the
# BEV is rotated about the cell (100, 100) at any size, and the CAN bus vectors mix up quaternion
# and messages.
_base_ = ["./bevformer.py"]
quirks = dict(can_bus_quaternion="official", can_bus_message="official")

model = dict(pts_bbox_head=dict(transformer=dict(rotate_center=[100, 100])))
data = dict(train=quirks, val=quirks, test=quirks)
