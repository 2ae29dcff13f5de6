"""A spinning lidar of 32 beams that sees the same faces as the cameras.

The whole turn happens at once, at the time of the key frame.
"""

import numpy as np

from projects.bevformer.jit import jit
from projects.synthetic_nuscenes.mesh import INSET
from projects.synthetic_nuscenes.poses import inverse

BEAMS = 32
AZIMUTH_STEPS = 1084
MAX_RANGE_M = 100.0
_LOWEST_DEG, _HIGHEST_DEG = -30.67, 10.67
_GROUND_RANGE_M = 70.0
_EGO_RADIUS_M = 1.2  # returns of the ego vehicle itself are left out

GROUND = -1


def scan(lidar2world, object2world, faces, rng):
    """Measure the distance to the nearest surface along every ray.

    Args:
        lidar2world: (4, 4).
        object2world: (K, 4, 4).
        faces: renderer.Faces of the K objects.
        rng: draws the range noise.

    Returns:
        points: (P, 5) float32 x, y, z in metres (lidar frame), intensity 0 to 255, beam number.
        owner: (P,) int64, index of the object hit, or GROUND.
    """
    elevation = np.radians(np.linspace(_LOWEST_DEG, _HIGHEST_DEG, BEAMS))
    azimuth = (np.arange(AZIMUTH_STEPS) + 0.5) * (2 * np.pi / AZIMUTH_STEPS) - np.pi
    lidar_from_object = inverse(lidar2world) @ object2world
    distance = np.full((AZIMUTH_STEPS, BEAMS), np.inf)
    face = np.full((AZIMUTH_STEPS, BEAMS), -1, dtype=np.int64)
    _cast(
        lidar_from_object, faces.first, faces.corners, faces.normals, faces.centers, faces.radii,
        azimuth, elevation, np.cos(azimuth), np.sin(azimuth), distance, face,
    )  # fmt: skip

    cos = np.cos(elevation)
    rays = np.stack(
        [
            np.cos(azimuth)[:, None] * cos,
            np.sin(azimuth)[:, None] * cos,
            np.broadcast_to(np.sin(elevation), distance.shape),
        ],
        axis=-1,
    )  # (A, BEAMS, 3)
    down = rays @ lidar2world[2, :3]
    with np.errstate(divide="ignore"):
        to_ground = np.where(down < -1e-6, lidar2world[2, 3] / np.maximum(-down, 1e-9), np.inf)
    on_ground = (to_ground < distance) & (to_ground < _GROUND_RANGE_M)
    distance = np.where(on_ground, to_ground, distance)
    owner = np.where(on_ground | (face < 0), GROUND, faces.owner[face])

    valid = (distance < MAX_RANGE_M) & (distance > _EGO_RADIUS_M)
    # Smaller than the gap between a mesh and its box: a noisy return stays inside the box.
    noise = np.clip(rng.normal(0.0, INSET / 2, distance.shape), -0.9 * INSET, 0.9 * INSET)
    points = rays * (distance + noise)[..., None]
    brightness = np.where(on_ground, 0.12, faces.colors[face].mean(axis=-1))
    intensity = np.clip(brightness * 110.0 + rng.normal(0.0, 3.0, distance.shape), 0.0, 255.0)
    ring = np.broadcast_to(np.arange(BEAMS), distance.shape)
    cloud = np.concatenate([points, intensity[..., None], ring[..., None]], axis=-1)
    return cloud[valid].astype(np.float32), owner[valid]


@jit
def _cast(lidar_from_object, first, corners, normals, centers, radii,
          azimuth, elevation, cos_azimuth, sin_azimuth, distance, face):  # fmt: skip
    """Shorten `distance` (A, BEAMS) where a ray meets a face, and record the face; see `scan`."""
    steps, beams = len(azimuth), len(elevation)
    azimuth_step = azimuth[1] - azimuth[0]
    ray, origin, hit = np.empty(3), np.empty(3), np.empty(3)
    for item in range(len(radii)):
        pose, center, radius = lidar_from_object[item], centers[item], radii[item]
        x = pose[0, 0] * center[0] + pose[0, 1] * center[1] + pose[0, 2] * center[2] + pose[0, 3]
        y = pose[1, 0] * center[0] + pose[1, 1] * center[1] + pose[1, 2] * center[2] + pose[1, 3]
        z = pose[2, 0] * center[0] + pose[2, 1] * center[1] + pose[2, 2] * center[2] + pose[2, 3]
        flat, away = np.hypot(x, y), np.sqrt(x * x + y * y + z * z)
        if away - radius > MAX_RANGE_M:
            continue
        # Rays outside this window of azimuths and elevations miss the sphere around the object.
        half_window = np.arcsin(radius / flat) if flat > radius else np.pi
        middle = np.arctan2(y, x)
        start = int(np.floor((middle - half_window - azimuth[0]) / azimuth_step))
        stop = int(np.ceil((middle + half_window - azimuth[0]) / azimuth_step)) + 1
        stop = min(stop, start + steps)
        rise, half_rise = np.arctan2(z, flat), np.pi
        if away > radius:
            half_rise = np.arcsin(radius / away)
        # The lidar's origin in the object frame: rotation transposed times minus the translation.
        for axis in range(3):
            origin[axis] = -(
                pose[0, axis] * pose[0, 3] + pose[1, axis] * pose[1, 3] + pose[2, axis] * pose[2, 3]
            )
        for beam in range(beams):
            if abs(elevation[beam] - rise) > half_rise:
                continue
            cos, sin = np.cos(elevation[beam]), np.sin(elevation[beam])
            for step in range(start, stop):
                column = step % steps
                rx, ry, rz = cos_azimuth[column] * cos, sin_azimuth[column] * cos, sin
                along = rx * x + ry * y + rz * z
                if along * along < away * away - radius * radius and away > radius:
                    continue
                for axis in range(3):
                    ray[axis] = pose[0, axis] * rx + pose[1, axis] * ry + pose[2, axis] * rz
                for index in range(first[item], first[item + 1]):
                    normal = normals[index]
                    facing = normal[0] * ray[0] + normal[1] * ray[1] + normal[2] * ray[2]
                    if facing >= -1e-9:
                        continue
                    corner = corners[index, 0]
                    gap = (
                        normal[0] * (corner[0] - origin[0])
                        + normal[1] * (corner[1] - origin[1])
                        + normal[2] * (corner[2] - origin[2])
                    )
                    reach = gap / facing
                    if reach <= 0.0 or reach >= distance[column, beam]:
                        continue
                    for axis in range(3):
                        hit[axis] = origin[axis] + reach * ray[axis]
                    if _inside(corners[index], normal, hit):
                        distance[column, beam] = reach
                        face[column, beam] = index


@jit
def _inside(corners, normal, point):
    """Whether a point of its plane lies in a convex quadrilateral, corners counter-clockwise."""
    for index in range(4):
        after = (index + 1) % 4
        ex = corners[after, 0] - corners[index, 0]
        ey = corners[after, 1] - corners[index, 1]
        ez = corners[after, 2] - corners[index, 2]
        px = point[0] - corners[index, 0]
        py = point[1] - corners[index, 1]
        pz = point[2] - corners[index, 2]
        side = (
            (ey * pz - ez * py) * normal[0]
            + (ez * px - ex * pz) * normal[1]
            + (ex * py - ey * px) * normal[2]
        )
        if side < -1e-9:
            return False
    return True
