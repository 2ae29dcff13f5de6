"""Triangle-free meshes: lists of convex quadrilaterals, the corners counter-clockwise seen from outside.

Object frame: x forward, y left, z up, origin on the ground below the middle of the box, metres.
"""

from dataclasses import dataclass

import numpy as np

# Kinds of surfaces; each has a texture in the shader.
PLAIN, PAINT, GLASS, LAMP, STRIPES, RIBS, FACADE, FOLIAGE = range(8)

# The mesh stays this far inside its annotated box, so that a lidar return with its range noise
# still lies inside.
INSET = 0.012


@dataclass(frozen=True)
class Mesh:
    """F faces.

    Attributes:
        corners: (F, 4, 3) float64 metres, object frame; a triangle repeats its last corner.
        colors: (F, 3) float64 linear RGB, 0 to 1.
        surfaces: (F,) int64, one of the surface constants above.
    """

    corners: np.ndarray
    colors: np.ndarray
    surfaces: np.ndarray

    def normals(self):
        """Outward unit normals, (F, 3)."""
        first = self.corners[:, 1] - self.corners[:, 0]
        second = self.corners[:, 2] - self.corners[:, 0]
        normal = np.cross(first, second)
        return normal / np.linalg.norm(normal, axis=1, keepdims=True)

    def fitted(self, size_lwh):
        """The same mesh stretched until it fills a box of this size, standing on z = 0."""
        size = np.asarray(size_lwh, dtype=np.float64)
        low = self.corners.min(axis=(0, 1))
        high = self.corners.max(axis=(0, 1))
        target_low = np.array([-size[0] / 2, -size[1] / 2, 0.0]) + INSET
        target_high = np.array([size[0] / 2, size[1] / 2, size[2]]) - INSET
        scale = (target_high - target_low) / (high - low)
        return Mesh((self.corners - low) * scale + target_low, self.colors, self.surfaces)


class MeshBuilder:
    """Collects the faces of one object; positions are fractions of its length, width and height.

    x runs from -0.5 (back) to 0.5 (front), y from -0.5 (right) to 0.5 (left), z from 0 to 1.
    """

    def __init__(self, size_lwh):
        self._scale = np.asarray(size_lwh, dtype=np.float64)
        self._corners, self._colors, self._surfaces, self._insides = [], [], [], []

    def quad(self, corners, color, surface=PAINT, inside=(0.0, 0.0, 0.5)):
        """Add one face, (4, 3) corners in order around it, turned away from the point `inside`."""
        self._corners.append(corners)
        self._colors.append(color)
        self._surfaces.append(surface)
        self._insides.append(inside)

    def frustum(self, bottom, top, color, surface=PAINT, sides=None):
        """Add a hexahedron between two horizontal rectangles.

        Args:
            bottom: (x0, x1, y0, y1, z) of the lower rectangle.
            top: the same of the upper one.
            color: linear RGB of all faces.
            surface: surface of all faces.
            sides: {name: (color, surface)} for faces that differ; names are front, back, left,
                right and top.
        """
        rings = []
        for x0, x1, y0, y1, z in (bottom, top):
            rings.append([(x1, y0, z), (x1, y1, z), (x0, y1, z), (x0, y0, z)])
        low, high = rings
        inside = tuple(sum(values) / 8 for values in zip(*low, *high))
        faces = {"top": high, "bottom": low}
        for index, name in enumerate(("front", "left", "back", "right")):
            after = (index + 1) % 4
            faces[name] = [low[index], low[after], high[after], high[index]]
        for name, corners in faces.items():
            face_color, face_surface = (sides or {}).get(name, (color, surface))
            self.quad(corners, face_color, face_surface, inside)

    def box(self, x0, x1, y0, y1, z0, z1, color, surface=PAINT, sides=None):
        """Add an upright box; see `frustum`."""
        self.frustum((x0, x1, y0, y1, z0), (x0, x1, y0, y1, z1), color, surface, sides)

    def plate(self, side, along, z0, z1, color, surface=PLAIN, at=0.5, inside=(0.0, 0.0, 0.5)):
        """Add an upright decal: a rectangle that faces front, back, left or right.

        Args:
            side: "front", "back", "left" or "right".
            along: (low, high) y for front and back, x for left and right.
            z0, z1: lower and upper edge.
            at: distance of its plane from the middle.
        """
        low, high = along
        if side in ("front", "back"):
            x = at if side == "front" else -at
            corners = [(x, low, z0), (x, high, z0), (x, high, z1), (x, low, z1)]
        else:
            y = at if side == "left" else -at
            corners = [(low, y, z0), (high, y, z0), (high, y, z1), (low, y, z1)]
        self.quad(corners, color, surface, inside)

    def wheel(self, x, y0, y1, radius, color=(0.03, 0.03, 0.035), corners=8):
        """Add a wheel on the ground: a prism about the y axis; radius is in metres."""
        radius_x, radius_z = radius / self._scale[0], radius / self._scale[2]
        angles = (np.arange(corners) + 0.5) * 2 * np.pi / corners
        rim = np.stack([x + radius_x * np.cos(angles), radius_z * (1 + np.sin(angles))], axis=1)
        center = ((x, (y0 + y1) / 2, radius_z),)
        for index in range(corners):
            (xa, za), (xb, zb) = rim[index], rim[(index + 1) % corners]
            rubber = [(xa, y0, za), (xb, y0, zb), (xb, y1, zb), (xa, y1, za)]
            self.quad(rubber, color, PLAIN, center[0])
        for y in (y0, y1):
            for index in range(0, corners - 2, 2):
                picked = rim[[0, index + 1, index + 2, min(index + 3, corners - 1)]]
                self.quad([(px, y, pz) for px, pz in picked], color, PLAIN, center[0])

    def build(self):
        """The mesh, in metres."""
        corners = np.array(self._corners, dtype=np.float64) * self._scale  # (F, 4, 3)
        outward = corners.mean(axis=1) - np.array(self._insides, dtype=np.float64) * self._scale
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        inverted = (normals * outward).sum(axis=1) < 0
        # The other way round; a repeated last corner stays the last.
        corners[inverted] = corners[inverted][:, [1, 0, 3, 2]]
        colors = np.array([np.asarray(color, dtype=np.float64) for color in self._colors])
        return Mesh(corners, colors, np.array(self._surfaces, dtype=np.int64))
