"""Visible face and object of each pixel: a z-buffer over convex polygons with exact edges.

Pixel (column, row) is sampled at its middle, (column + 0.5, row + 0.5).
"""

import numpy as np

from projects.bevformer.jit import jit

NEAR_M = 0.15
_MAX_CORNERS = 5  # a quadrilateral cut by the near plane
NO_FACE = -1


@jit
def _clip_near(corners, clipped):
    """Cut a camera-frame quadrilateral (4, 3) at z = NEAR_M; corners left go to `clipped`."""
    count = 0
    for index in range(4):
        x0, y0, z0 = corners[index, 0], corners[index, 1], corners[index, 2]
        after = (index + 1) % 4
        x1, y1, z1 = corners[after, 0], corners[after, 1], corners[after, 2]
        if z0 >= NEAR_M:
            clipped[count, 0], clipped[count, 1], clipped[count, 2] = x0, y0, z0
            count += 1
        if (z0 >= NEAR_M) != (z1 >= NEAR_M):
            share = (NEAR_M - z0) / (z1 - z0)
            clipped[count, 0] = x0 + share * (x1 - x0)
            clipped[count, 1] = y0 + share * (y1 - y0)
            clipped[count, 2] = NEAR_M
            count += 1
    return count


@jit
def _row_span(pixels, count, y):
    """Where the horizontal line at y cuts a convex polygon: (left, right), left > right if nowhere."""
    left, right = 1e30, -1e30
    for index in range(count):
        after = index + 1 if index + 1 < count else 0
        y0, y1 = pixels[index, 1], pixels[after, 1]
        if (y0 <= y) != (y1 <= y):
            x = pixels[index, 0] + (y - y0) / (y1 - y0) * (pixels[after, 0] - pixels[index, 0])
            left, right = min(left, x), max(right, x)
    return left, right


@jit
def _project(clipped, count, focal, center_x, center_y, pixels):
    """Project clipped corners; returns the lowest and highest y."""
    low, high = 1e30, -1e30
    for index in range(count):
        scale = focal / clipped[index, 2]
        pixels[index, 0] = clipped[index, 0] * scale + center_x
        pixels[index, 1] = clipped[index, 1] * scale + center_y
        low, high = min(low, pixels[index, 1]), max(high, pixels[index, 1])
    return low, high


@jit
def _first_sample(edge):
    """Index of the first pixel whose centre is not before `edge`."""
    return int(np.ceil(min(max(edge, -1e6), 1e6) - 0.5))


@jit
def rasterise(camera_from_object, first_face, corners, centers, radii, focal, center_x, center_y,
              inverse_depth, face_at, stamp, object_pixels):  # fmt: skip
    """Draw all objects into the buffers.

    Args:
        camera_from_object: (K, 4, 4).
        first_face: (K + 1,) int64; object k has the faces first_face[k] to first_face[k + 1] - 1.
        corners: (F, 4, 3) metres, object frame, counter-clockwise seen from outside.
        centers, radii: (K, 3) and (K,), a sphere around each object, object frame.
        focal, center_x, center_y: of the camera, in pixels of the buffers.
        inverse_depth: (H, W) float32 1/m; filled with 0 before, changed here.
        face_at: (H, W) int32 index of the face seen; filled with NO_FACE before, changed here.
        stamp: (H, W) int32 scratch space, filled with NO_FACE before, changed here.
        object_pixels: (K,) int64; the pixels each object would have if nothing hid it are added.
    """
    height, width = inverse_depth.shape
    in_camera = np.empty((4, 3))
    clipped = np.empty((_MAX_CORNERS, 3))
    pixels = np.empty((_MAX_CORNERS, 2))
    for item in range(len(radii)):
        pose, radius = camera_from_object[item], radii[item]
        center = centers[item]
        cx = pose[0, 0] * center[0] + pose[0, 1] * center[1] + pose[0, 2] * center[2] + pose[0, 3]
        cy = pose[1, 0] * center[0] + pose[1, 1] * center[1] + pose[1, 2] * center[2] + pose[1, 3]
        cz = pose[2, 0] * center[0] + pose[2, 1] * center[1] + pose[2, 2] * center[2] + pose[2, 3]
        if cz < NEAR_M - radius:
            continue
        # Bounds of the picture as slopes; a sphere beyond one of the four side planes is unseen.
        left, right = -center_x / focal, (width - center_x) / focal
        top, bottom = -center_y / focal, (height - center_y) / focal
        if (
            cx - left * cz < -radius * np.sqrt(1 + left * left)
            or right * cz - cx < -radius * np.sqrt(1 + right * right)
            or cy - top * cz < -radius * np.sqrt(1 + top * top)
            or bottom * cz - cy < -radius * np.sqrt(1 + bottom * bottom)
        ):
            continue
        for face in range(first_face[item], first_face[item + 1]):
            for index in range(4):
                for axis in range(3):
                    in_camera[index, axis] = (
                        pose[axis, 0] * corners[face, index, 0]
                        + pose[axis, 1] * corners[face, index, 1]
                        + pose[axis, 2] * corners[face, index, 2]
                        + pose[axis, 3]
                    )
            ax = in_camera[1, 0] - in_camera[0, 0]
            ay = in_camera[1, 1] - in_camera[0, 1]
            az = in_camera[1, 2] - in_camera[0, 2]
            bx = in_camera[2, 0] - in_camera[0, 0]
            by = in_camera[2, 1] - in_camera[0, 1]
            bz = in_camera[2, 2] - in_camera[0, 2]
            nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
            plane = nx * in_camera[0, 0] + ny * in_camera[0, 1] + nz * in_camera[0, 2]
            if plane >= -1e-12:
                continue  # seen from behind, or edge on
            count = _clip_near(in_camera, clipped)
            if count < 3:
                continue
            low, high = _project(clipped, count, focal, center_x, center_y, pixels)
            # On the plane n.P = c the inverse depth is linear in the pixel: 1/z = n.ray / c.
            slope_x, slope_y = nx / (plane * focal), ny / (plane * focal)
            offset = nz / plane - slope_x * center_x - slope_y * center_y
            for row in range(max(0, _first_sample(low)), min(height, _first_sample(high))):
                x0, x1 = _row_span(pixels, count, row + 0.5)
                if x0 > x1:
                    continue
                start, stop = max(0, _first_sample(x0)), min(width, _first_sample(x1))
                row_offset = offset + slope_y * (row + 0.5)
                for column in range(start, stop):
                    if stamp[row, column] != item:
                        stamp[row, column] = item
                        object_pixels[item] += 1
                    depth = np.float32(row_offset + slope_x * (column + 0.5))
                    if depth > inverse_depth[row, column]:
                        inverse_depth[row, column] = depth
                        face_at[row, column] = face


@jit
def rasterise_shadows(world_from_object, casts, first_face, corners, to_sun, world_to_camera, camera_xy,
                      reach, focal, center_x, center_y, mask):  # fmt: skip
    """Mark the pixels where the ground lies in the shadow of an object.

    Args:
        world_from_object: (K, 4, 4).
        casts: (K,) bool, whether an object casts a shadow.
        first_face, corners: see `rasterise`.
        to_sun: (3,) unit vector, world frame.
        world_to_camera: (4, 4).
        camera_xy: (2,) position of the camera, world frame.
        reach: objects farther from the camera, in metres, cast no shadow.
        focal, center_x, center_y: in pixels of the mask.
        mask: (H, W) uint8, set to 1 here.
    """
    height, width = mask.shape
    in_camera = np.empty((4, 3))
    clipped = np.empty((_MAX_CORNERS, 3))
    pixels = np.empty((_MAX_CORNERS, 2))
    for item in range(len(casts)):
        pose = world_from_object[item]
        away = np.hypot(pose[0, 3] - camera_xy[0], pose[1, 3] - camera_xy[1])
        if not casts[item] or away > reach:
            continue
        for face in range(first_face[item], first_face[item + 1]):
            for index in range(4):
                u, v, z = corners[face, index, 0], corners[face, index, 1], corners[face, index, 2]
                x = pose[0, 0] * u + pose[0, 1] * v + pose[0, 3] - z * to_sun[0] / to_sun[2]
                y = pose[1, 0] * u + pose[1, 1] * v + pose[1, 3] - z * to_sun[1] / to_sun[2]
                for axis in range(3):
                    row_of = world_to_camera[axis]
                    in_camera[index, axis] = row_of[0] * x + row_of[1] * y + row_of[3]
            count = _clip_near(in_camera, clipped)
            if count < 3:
                continue
            low, high = _project(clipped, count, focal, center_x, center_y, pixels)
            for row in range(max(0, _first_sample(low)), min(height, _first_sample(high))):
                x0, x1 = _row_span(pixels, count, row + 0.5)
                if x0 <= x1:
                    for column in range(max(0, _first_sample(x0)), min(width, _first_sample(x1))):
                        mask[row, column] = 1
