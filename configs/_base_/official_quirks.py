# What the official weights were trained with and depend on (docs/checkpoint_compatibility.md): the
# BEV is rotated about the cell (100, 100) at any size, the CAN bus vectors mix up quaternion and
# messages, turns past north are almost 360 degrees, and the lidar is taken to look exactly to the right.
# And the velocities of the original's result files.
_base_ = ["./bevformer.py"]
quirks = dict(
    can_bus_quaternion="official",
    can_bus_message="official",
    can_bus_heading="official",
    lidar_axes="official",
    result_velocity="official",
)

model = dict(pts_bbox_head=dict(transformer=dict(rotate_center=[100, 100])))
data = dict(train=quirks, val=quirks, test=quirks)
