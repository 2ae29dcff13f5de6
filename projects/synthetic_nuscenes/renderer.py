"""Renders camera images of a world, and measures how much of each object is visible."""

from dataclasses import dataclass

import numpy as np

from projects.synthetic_nuscenes.ground import mip_levels, paint_ground
from projects.synthetic_nuscenes.poses import inverse
from projects.synthetic_nuscenes.rasteriser import NO_FACE, rasterise, rasterise_shadows
from projects.synthetic_nuscenes.shader import SUPERSAMPLING, shade
from projects.synthetic_nuscenes.world import scene_generator

_SHADOW_REACH_M = 70.0


@dataclass(frozen=True)
class Faces:
    """The meshes of K objects, one after the other; F faces in all.

    Attributes:
        first: (K + 1,) int64, object k has the faces first[k] to first[k + 1] - 1.
        owner: (F,) int64, the object of each face.
        corners, normals, colors, surfaces: of `mesh.Mesh`.
        centers, radii: (K, 3) and (K,), a sphere around each object, object frame, metres.
    """

    first: np.ndarray
    owner: np.ndarray
    corners: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    surfaces: np.ndarray
    centers: np.ndarray
    radii: np.ndarray


def gather_faces(objects):
    """The faces of all objects of a world."""
    meshes = [item.mesh for item in objects]
    counts = np.array([len(mesh.corners) for mesh in meshes], dtype=np.int64)
    sizes = np.array([item.size_lwh for item in objects])
    centers = np.zeros((len(objects), 3))
    centers[:, 2] = sizes[:, 2] / 2
    return Faces(
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        owner=np.repeat(np.arange(len(objects)), counts).astype(np.int64),
        corners=np.concatenate([mesh.corners for mesh in meshes]),
        normals=np.concatenate([mesh.normals() for mesh in meshes]),
        colors=np.concatenate([mesh.colors for mesh in meshes]),
        surfaces=np.concatenate([mesh.surfaces for mesh in meshes]).astype(np.int64),
        centers=centers,
        radii=np.linalg.norm(sizes, axis=1) / 2,
    )


@dataclass(frozen=True)
class Picture:
    """A rendered image and what is visible in it.

    Attributes:
        rgb: (H, W, 3) uint8.
        object_at: (H, W) int64, index of the object at each pixel's upper left sample, or -1.
        seen: (K,) samples that show each object.
        unhidden: (K,) samples that would show it if it stood alone; SUPERSAMPLING^2 samples a pixel.
    """

    rgb: np.ndarray
    object_at: np.ndarray
    seen: np.ndarray
    unhidden: np.ndarray


class Renderer:
    """Renders images of one world."""

    def __init__(self, world, seed):
        self._world = world
        self._faces = gather_faces(world.objects)
        rng = scene_generator(seed, world.name, "ground")
        self._texels, self._layout = mip_levels(paint_ground(world, rng))
        self._casts = np.array([item.kind != "building" for item in world.objects])

    @property
    def faces(self):
        return self._faces

    def render(self, intrinsic, camera2world, object2world, image_hw, rng):
        """Render one image.

        Args:
            intrinsic: (3, 3) pixels.
            camera2world: (4, 4).
            object2world: (K, 4, 4) where the objects are when the camera fires.
            image_hw: height and width.
            rng: draws the image noise.

        Returns:
            Picture.
        """
        faces, light = self._faces, self._world.light
        height, width = image_hw
        fine = (height * SUPERSAMPLING, width * SUPERSAMPLING)
        world2camera = inverse(camera2world)
        camera_from_object = world2camera @ object2world
        focal, center_x, center_y = intrinsic[0, 0], intrinsic[0, 2], intrinsic[1, 2]
        fine_camera = [value * SUPERSAMPLING for value in (focal, center_x, center_y)]

        inverse_depth = np.zeros(fine, dtype=np.float32)
        face_at = np.full(fine, NO_FACE, dtype=np.int32)
        stamp = np.full(fine, NO_FACE, dtype=np.int32)
        unhidden = np.zeros(len(faces.radii), dtype=np.int64)
        rasterise(
            camera_from_object, faces.first, faces.corners, faces.centers, faces.radii, *fine_camera,
            inverse_depth, face_at, stamp, unhidden,
        )  # fmt: skip
        shadow = np.zeros(fine, dtype=np.uint8)
        rasterise_shadows(
            object2world, self._casts, faces.first, faces.corners, light.to_sun, world2camera,
            camera2world[:2, 3].copy(), _SHADOW_REACH_M, *fine_camera, shadow,
        )  # fmt: skip

        rotation = camera_from_object[:, :3, :3].transpose(0, 2, 1)
        object_from_camera = np.zeros((len(rotation), 3, 4))
        object_from_camera[:, :, :3] = rotation
        object_from_camera[:, :, 3:] = -rotation @ camera_from_object[:, :3, 3:]
        to_sun_object = object2world[:, :3, :3].transpose(0, 2, 1) @ light.to_sun
        image = np.empty((height, width, 3), dtype=np.float32)
        shade(
            inverse_depth, face_at, shadow, faces.owner, object_from_camera, to_sun_object,
            faces.normals, faces.colors, faces.surfaces, camera2world, focal, center_x, center_y,
            self._texels, self._layout, light.sun, light.ambient, light.zenith, light.horizon,
            light.cloudiness, light.haze_range_m, light.to_sun[2], light.shadow, image,
        )  # fmt: skip

        visible = face_at[face_at != NO_FACE]
        seen = np.bincount(faces.owner[visible], minlength=len(faces.radii))
        corner = face_at[::SUPERSAMPLING, ::SUPERSAMPLING]
        object_at = np.where(corner == NO_FACE, -1, faces.owner[corner])
        return Picture(_develop(image, light.noise, rng), object_at, seen, unhidden)


def _develop(linear, noise, rng):
    """Linear RGB to noisy uint8, with a square root as tone curve."""
    image = np.sqrt(np.clip(linear, 0.0, 1.0)) * 255.0
    height, width = image.shape[:2]
    # Grey noise: a sensor's noise, after demosaicing, is mostly in the brightness.
    image += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(noise)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
