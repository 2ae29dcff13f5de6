"""The colour of every pixel: faces, ground or sky, light, haze.

The rasteriser sampled a grid twice as fine as the picture. A pixel whose four samples saw one face
is shaded once, in its middle; one on an outline is the mean of its four samples.
"""

import numpy as np

from projects.bevformer.jit import jit
from projects.synthetic_nuscenes.ground import RESOLUTION_M
from projects.synthetic_nuscenes.mesh import FACADE, FOLIAGE, GLASS, LAMP, PAINT, RIBS, STRIPES
from projects.synthetic_nuscenes.rasteriser import NO_FACE

SUPERSAMPLING = 2

_WINDOW_M, _STOREY_M = 2.4, 3.1


@jit
def _hash(x, y, z):
    """Hash of three integers, as a number in [0, 1)."""
    value = (x * 374761393 + y * 668265263 + z * 1274126177) & 0xFFFFFFFF
    value = ((value ^ (value >> 13)) * 1103515245) & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 2654435761) & 0xFFFFFFFF
    return ((value ^ (value >> 15)) & 0xFFFFFF) / 16777216.0


@jit
def _cell(value, size):
    return int(np.floor(value / size))


@jit
def _smooth_noise(x, y, salt):
    """Bilinear noise on the unit grid, 0 to 1."""
    ix, iy = int(np.floor(x)), int(np.floor(y))
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    low = _hash(ix, iy, salt) * (1 - fx) + _hash(ix + 1, iy, salt) * fx
    high = _hash(ix, iy + 1, salt) * (1 - fx) + _hash(ix + 1, iy + 1, salt) * fx
    return low * (1 - fy) + high * fy


@jit
def _sky(direction, zenith, horizon, cloudiness, color):
    """Colour of the sky in a world-frame direction (unit vector)."""
    up = max(direction[2], 0.0)
    share = 1.0 - (1.0 - up) ** 5
    for channel in range(3):
        color[channel] = horizon[channel] + (zenith[channel] - horizon[channel]) * share
    if up > 0.02:
        x, y = direction[0] / up, direction[1] / up
        cover = 0.65 * _smooth_noise(0.7 * x, 0.7 * y, 1) + 0.35 * _smooth_noise(
            2.1 * x, 2.1 * y, 2
        )
        cloud = min(max((cover - 0.9 + 0.6 * cloudiness) * 3.0, 0.0), 1.0) * min(1.0, up * 8.0)
        for channel in range(3):
            color[channel] += (0.80 - color[channel]) * 0.7 * cloud


@jit
def _ground(x, y, footprint_m, texels, layout, color):
    """Colour of the ground at world (x, y), averaged over about footprint_m."""
    # A little dither hides where one level gives way to the next.
    blur = footprint_m / RESOLUTION_M * (0.85 + 0.3 * _hash(_cell(x, 0.05), _cell(y, 0.05), 3))
    level = min(int(np.log2(max(blur, 1.0)) + 0.5), len(layout) - 1)
    first, height, width = layout[level]
    size = RESOLUTION_M * 2.0**level
    column, row = x / size - 0.5, y / size - 0.5
    column, row = min(max(column, 0.0), width - 1.001), min(max(row, 0.0), height - 1.001)
    ix, iy = int(column), int(row)
    fx, fy = column - ix, row - iy
    at = first + iy * width + ix
    for channel in range(3):
        upper = texels[at, channel] * (1 - fx) + texels[at + 1, channel] * fx
        lower = texels[at + width, channel] * (1 - fx) + texels[at + width + 1, channel] * fx
        value = (upper * (1 - fy) + lower * fy) / 255.0
        color[channel] = value * value


@jit
def _pattern(surface, position, normal, distance, color):
    """Change the base colour of a face by its procedural texture; position in the object frame."""
    x, y, z = position[0], position[1], position[2]
    along = y if abs(normal[0]) > abs(normal[1]) else x
    factor = 1.0
    if surface == STRIPES:
        phase = (along + z) / 0.5
        if phase - np.floor(phase) < 0.5:
            color[0], color[1], color[2] = 0.72, 0.04, 0.03
    elif surface == RIBS:
        phase = along / 0.55
        if abs(normal[2]) < 0.5 and phase - np.floor(phase) < 0.14:
            factor = 0.72
    elif surface == FOLIAGE:
        factor = 0.55 + 0.9 * _hash(_cell(x, 0.3), _cell(y, 0.3), _cell(z, 0.3))
    elif surface == FACADE:
        u, v = along / _WINDOW_M, z / _STOREY_M
        column, storey = np.floor(u), np.floor(v)
        inside_u, inside_v = u - column, v - storey
        wide = 0.10 if storey == 0 else 0.24
        if wide < inside_u < 1 - wide and 0.28 < inside_v < 0.80:
            glow = 0.05 + 0.14 * _hash(int(column), int(storey), int(normal[0] * 3 + normal[1] * 7))
            color[0], color[1], color[2] = glow, glow * 1.08, glow * 1.15
        elif inside_v < 0.06:
            factor = 0.8
    if distance < 30.0 and surface != GLASS and surface != FOLIAGE:
        grain = _hash(_cell(x, 0.06), _cell(y, 0.06), _cell(z, 0.06)) - 0.5
        factor *= 1.0 + 0.10 * grain * (1.0 - distance / 30.0)
    for channel in range(3):
        color[channel] *= factor


@jit
def _face_color(face, item, ray, inverse_depth, distance, object_from_camera, object_light,
                normals, base, surfaces, sun, ambient, zenith, color, position):  # fmt: skip
    """Colour of a face where a camera ray (z = 1) meets it, before haze."""
    depth = 1.0 / inverse_depth
    pose = object_from_camera[item]
    for axis in range(3):
        position[axis] = (
            pose[axis, 0] * ray[0] + pose[axis, 1] * ray[1] + pose[axis, 2]
        ) * depth + pose[axis, 3]
    surface, normal = surfaces[face], normals[face]
    for channel in range(3):
        color[channel] = base[face, channel]
    if surface == LAMP:
        return
    _pattern(surface, position, normal, distance, color)
    to_sun = object_light[item]
    facing = max(0.0, normal[0] * to_sun[0] + normal[1] * to_sun[1] + normal[2] * to_sun[2])
    from_sky = 0.72 + 0.28 * normal[2]
    contact = 0.5 + 0.5 * min(1.0, max(position[2], 0.0) / 0.45)  # the ground takes light away
    sheen = 0.0
    if surface == GLASS:
        sheen = 0.10 + 0.25 * max(normal[2], 0.0)
    elif surface == PAINT:
        sheen = 0.05
    for channel in range(3):
        light = ambient[channel] * from_sky * contact + sun[channel] * facing
        color[channel] = color[channel] * light + sheen * zenith[channel] * ambient[channel]


@jit
def shade(inverse_depth, face_at, shadow, face_object, object_from_camera, object_light, normals, base,
          surfaces, camera_to_world, focal, center_x, center_y, texels, layout, sun, ambient, zenith,
          horizon, cloudiness, haze_range, to_sun_z, shadow_share, image):  # fmt: skip
    """Fill the image.

    Args:
        inverse_depth, face_at, shadow: (2H, 2W) buffers of the rasteriser.
        face_object: (F,) the object of each face.
        object_from_camera: (K, 3, 4).
        object_light: (K, 3) direction to the sun, object frame.
        normals, base, surfaces: (F, 3), (F, 3) and (F,), of the faces.
        camera_to_world: (4, 4).
        focal, center_x, center_y: in pixels of the picture.
        texels, layout: of `ground.mip_levels`.
        sun, ambient, zenith, horizon, cloudiness, haze_range, shadow_share: see `light.Light`.
        to_sun_z: sine of the sun's elevation.
        image: (H, W, 3) float32 linear RGB, filled here.
    """
    height, width = image.shape[:2]
    ray, direction = np.empty(3), np.empty(3)
    color, position, mean = np.empty(3), np.empty(3), np.empty(3)
    eye_z = camera_to_world[2, 3]
    ray[2] = 1.0
    for row in range(height):
        for column in range(width):
            first = face_at[2 * row, 2 * column]
            uniform = (
                first == face_at[2 * row, 2 * column + 1]
                and first == face_at[2 * row + 1, 2 * column]
                and first == face_at[2 * row + 1, 2 * column + 1]
            )
            samples = 1 if uniform else 4
            mean[0] = mean[1] = mean[2] = 0.0
            for sample in range(samples):
                sub_row, sub_column = sample // 2, sample % 2
                fine_row, fine_column = 2 * row + sub_row, 2 * column + sub_column
                x, y = column + 0.5, row + 0.5
                inverse = inverse_depth[fine_row, fine_column]
                if uniform:
                    inverse = 0.25 * (
                        inverse
                        + inverse_depth[fine_row, fine_column + 1]
                        + inverse_depth[fine_row + 1, fine_column]
                        + inverse_depth[fine_row + 1, fine_column + 1]
                    )
                else:
                    x += 0.5 * sub_column - 0.25
                    y += 0.5 * sub_row - 0.25
                ray[0], ray[1] = (x - center_x) / focal, (y - center_y) / focal
                length = np.sqrt(ray[0] * ray[0] + ray[1] * ray[1] + 1.0)
                for axis in range(3):
                    direction[axis] = (
                        camera_to_world[axis, 0] * ray[0]
                        + camera_to_world[axis, 1] * ray[1]
                        + camera_to_world[axis, 2]
                    ) / length
                face = face_at[fine_row, fine_column]
                distance = 1e9
                if face != NO_FACE:
                    distance = length / inverse
                    _face_color(
                        face, face_object[face], ray, inverse, distance, object_from_camera,
                        object_light, normals, base, surfaces, sun, ambient, zenith, color, position,
                    )  # fmt: skip
                elif direction[2] < -1e-3:
                    distance = -eye_z / direction[2]
                    ground_x = camera_to_world[0, 3] + distance * direction[0]
                    ground_y = camera_to_world[1, 3] + distance * direction[1]
                    # Geometric mean of the footprints across and along the line of sight.
                    footprint = distance / focal / np.sqrt(-direction[2])
                    _ground(ground_x, ground_y, footprint, texels, layout, color)
                    grain = 1.0
                    if distance < 14.0:
                        speck = _hash(_cell(ground_x, 0.03), _cell(ground_y, 0.03), 5) - 0.5
                        grain += 0.16 * speck * (1.0 - distance / 14.0)
                    in_shadow = 0.25 * (
                        shadow[2 * row, 2 * column]
                        + shadow[2 * row, 2 * column + 1]
                        + shadow[2 * row + 1, 2 * column]
                        + shadow[2 * row + 1, 2 * column + 1]
                    )
                    for channel in range(3):
                        light = ambient[channel] + sun[channel] * to_sun_z
                        color[channel] *= light * grain * (1.0 - shadow_share * in_shadow)
                else:
                    _sky(direction, zenith, horizon, cloudiness, color)
                haze = 0.0
                if distance < 1e8:
                    haze = 1.0 - np.exp(-distance / haze_range)
                for channel in range(3):
                    mean[channel] += color[channel] + (horizon[channel] - color[channel]) * haze
            for channel in range(3):
                image[row, column, channel] = mean[channel] / samples
