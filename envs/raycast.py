"""A renderer that needs no OpenGL: one MuJoCo ray per pixel, shaded in numpy.

The shading is OpenGL's fixed pipeline without its specular term: colour x (ambient + sum over
lights of diffuse x max(0, normal . towards light)), with the headlight shining along the view.
Lights must be directional. No textures (a textured surface has the mean colour, the sky too), no
shadows, no antialiasing. Deterministic, and safe to fork.
"""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

import copy

import mujoco
import numpy as np

_DEFAULT_RGBA = (0.5, 0.5, 0.5, 1.0)  # what MuJoCo gives to a geom without a colour
MAX_DISTANCE = 20.0  # [m]; a ray that meets nothing nearer shows the sky
_STATIC, _MOVING, _HIDDEN = 0, 1, 5  # geom groups in the renderer's own copy of the model
_LOOK = tuple(  # what of a model decides how the parts that never move look
    "geom_type geom_size geom_pos geom_quat geom_rgba geom_matid geom_group mat_rgba body_pos "
    "body_quat cam_pos cam_quat cam_fovy light_dir light_ambient light_diffuse".split()
)


class RayRenderer:
    """Pictures of one size.

    What never moves is drawn once for each fixed camera and kept until the model changes; then
    only what covers it is shaded anew.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int):
        self._model, self._height, self._width = model, height, width
        self._fixed_views: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._look = b""

    def _notice_changes(self) -> None:
        """Forget what was derived from the model if the model has changed since."""
        model = self._model
        headlight = model.vis.headlight
        arrays = [getattr(model, name) for name in _LOOK] + [headlight.ambient, headlight.diffuse]
        look = b"".join(array.tobytes() for array in arrays)
        if look == self._look:
            return
        self._look = look
        self._fixed_views.clear()
        # mj_multiRay selects geoms by group: a private copy of the model groups them by whether
        # they can move, and hides what OpenGL hides by default (groups 3 and up).
        self._grouped = copy.copy(model)
        moves = model.body_weldid[model.geom_bodyid] != 0
        self._grouped.geom_group[:] = np.where(
            model.geom_group > 2, _HIDDEN, np.where(moves, _MOVING, _STATIC)
        )
        self._colours = np.vstack([_geom_colours(model), _sky_colour(model)])  # the sky is last

    def render(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """Return a new uint8 RGB image (height, width, 3) of the state in `data`."""
        self._notice_changes()
        camera_id = self._model.camera(camera).id
        if self._model.body_weldid[self._model.cam_bodyid[camera_id]] == 0:
            image = self._draw_over_fixed_view(data, camera_id)
        else:
            rays = self._rays(data, camera_id)
            geom, _, normal = self._cast(data, camera_id, rays, _STATIC, _MOVING)
            image = self._shade(data, camera_id, geom, normal)
        return image.reshape(self._height, self._width, 3)

    def close(self) -> None:
        """Forget the kept views."""
        self._fixed_views.clear()

    def _draw_over_fixed_view(self, data: mujoco.MjData, camera_id: int) -> np.ndarray:
        """Return the colours (pixels, 3) that a fixed camera sees."""
        if camera_id not in self._fixed_views:
            rays = self._rays(data, camera_id)
            geom, distance, normal = self._cast(data, camera_id, rays, _STATIC)
            background = self._shade(data, camera_id, geom, normal)
            self._fixed_views[camera_id] = rays, distance, background
        rays, background_distance, background = self._fixed_views[camera_id]
        geom, distance, normal = self._cast(data, camera_id, rays, _MOVING)
        in_front = distance < background_distance
        image = background.copy()
        image[in_front] = self._shade(data, camera_id, geom[in_front], normal[in_front])
        return image

    def _rays(self, data: mujoco.MjData, camera_id: int) -> np.ndarray:
        """Return unit vectors (pixels, 3) through the pixel centres, in the world frame."""
        half_height = np.tan(np.deg2rad(self._model.cam_fovy[camera_id]) / 2)
        pixel = 2 * half_height / self._height
        x = (np.arange(self._width) + 0.5 - self._width / 2) * pixel
        y = (self._height / 2 - np.arange(self._height) - 0.5) * pixel
        right, up, back = data.cam_xmat[camera_id].reshape(3, 3).T
        rays = x[None, :, None] * right + y[:, None, None] * up - back  # (height, width, 3)
        return (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).reshape(-1, 3)

    def _cast(
        self, data: mujoco.MjData, camera_id: int, rays: np.ndarray, *groups: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find what rays meet first among the geoms of `groups`.

        Returns:
            Geom ids (pixels,), -1 for none; distances (pixels,) [m], inf for none; unit surface
            normals (pixels, 3) in the world frame.
        """
        count = len(rays)
        drawn = np.zeros(mujoco.mjNGROUP, np.uint8)
        drawn[list(groups)] = 1
        geom, distance = np.empty(count, np.int32), np.empty(count)
        normal = np.zeros(3 * count)
        mujoco.mj_multiRay(
            self._grouped,
            data,
            data.cam_xpos[camera_id],
            rays.ravel(),
            drawn,
            True,  # with geoms fixed to the world
            -1,  # no body left out
            geom,
            distance,
            normal,
            count,
            MAX_DISTANCE,
        )
        distance[geom < 0] = np.inf
        return geom, distance, normal.reshape(-1, 3)

    def _shade(
        self, data: mujoco.MjData, camera_id: int, geom: np.ndarray, normal: np.ndarray
    ) -> np.ndarray:
        """Return the colours (pixels, 3) uint8 of geoms, where their surface faces `normal`."""
        headlight = self._model.vis.headlight
        view = -data.cam_xmat[camera_id].reshape(3, 3)[:, 2]
        light = headlight.ambient + _lambert(normal, view) * headlight.diffuse
        for i in range(self._model.nlight):
            light += self._model.light_ambient[i]
            light += _lambert(normal, data.light_xdir[i]) * self._model.light_diffuse[i]
        light[geom < 0] = 1.0
        return np.round(255 * np.minimum(self._colours[geom] * light, 1.0)).astype(np.uint8)


def _lambert(normal: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return how squarely light along `direction` (3,) meets each normal, (pixels, 1), 0 to 1."""
    # Sums of columns, not a matrix product: starting BLAS threads would cost more than it saves.
    x, y, z = direction
    return np.maximum(0.0, -(normal[:, 0] * x + normal[:, 1] * y + normal[:, 2] * z))[:, None]


def _geom_colours(model: mujoco.MjModel) -> np.ndarray:
    """Return the mean colour (geoms, 3) of each geom, as OpenGL mixes it.

    A geom's own colour counts unless it is MuJoCo's default and there is a material; a texture of
    the material multiplies it.
    """
    colours = model.geom_rgba[:, :3].astype(float)
    for geom in np.flatnonzero(model.geom_matid >= 0):
        material = model.geom_matid[geom]
        if (model.geom_rgba[geom] == _DEFAULT_RGBA).all():
            colours[geom] = model.mat_rgba[material, :3]
        texture = model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB]
        if texture >= 0:
            colours[geom] *= _mean_colour(model, texture)
    return colours


def _sky_colour(model: mujoco.MjModel) -> np.ndarray:
    """Return the mean colour (3,) of the skybox, black without one, as OpenGL does."""
    skies = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    return _mean_colour(model, skies[0]) if len(skies) else np.zeros(3)


def _mean_colour(model: mujoco.MjModel, texture: int) -> np.ndarray:
    """Return the mean colour (3,), 0 to 1, of a texture."""
    channels, start = model.tex_nchannel[texture], model.tex_adr[texture]
    size = model.tex_height[texture] * model.tex_width[texture] * channels
    texels = model.tex_data[start : start + size].reshape(-1, channels)
    return texels[:, :3].mean(axis=0) / 255
