"""Columns of the 18-number `can_bus` vector of an info or a meta (docs/data_format.md)."""

CAN_POSITION = slice(0, 3)  # metres, global frame; in a queue: minus the previous frame's
CAN_ORIENTATION = slice(3, 7)  # quaternion w, x, y, z
CAN_ACCELERATION = slice(7, 10)  # m/s^2
CAN_ROTATION_RATE = slice(10, 13)  # rad/s
CAN_VELOCITY = slice(13, 16)  # m/s
CAN_YAW_RAD = 16  # absolute ego yaw in the global frame, [0, 2 pi)
CAN_YAW_DEG = 17  # ego yaw in degrees; in a queue: minus the previous frame's
CAN_SIZE = 18

# Acceleration, rotation rate and velocity are adjacent: the part that the official infos take from the
# message after the key frame.
CAN_MOTION = slice(CAN_ACCELERATION.start, CAN_VELOCITY.stop)
