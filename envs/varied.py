"""Puts a variation into a compiled model, and takes it out again.

One compiled model serves all episodes: `apply` first restores the plain model, every array of it,
and then changes what varies, with all that MuJoCo's compiler would have derived from it.
"""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

import colorsys
import functools

import mujoco
import numpy as np

from worldmodel.envs import dressing, franka
from worldmodel.envs.variation import CameraShift, Thing, Variation

_BOX, _CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
_AIM_DISTANCE = 1.1  # [m] from an exterior camera to what it is pointed at again once moved
_TEXELS = "tex_data"  # large, and never changed
_HEADLIGHT = ("ambient", "diffuse")


def apply(variation: Variation, model: mujoco.MjModel, *, plain: mujoco.MjModel) -> None:
    """Set `model` to a variation of `plain`, whatever it was before.

    Renderers and `MjData` of the model stay valid; reset the data before the next step.

    Args:
        variation: What differs.
        model: The model to change in place, a copy of `plain`.
        plain: The model as `franka.build_model` made it; not changed.
    """
    _restore(model, plain)
    for i, name in enumerate(franka.CUBES):
        _set_object(model, name, variation, i)
    if variation.friction_ratio != 1.0:
        _scale_friction(model, variation.friction_ratio)
    for name, piece in zip(dressing.CLUTTER, variation.clutter, strict=False):
        _place_thing(model, name, piece, height=piece.half_height)
    for i, (name, mat) in enumerate(zip(dressing.MATS, variation.mats, strict=False)):
        _place_thing(model, name, mat, height=i * dressing.MAT_STEP)
    _paint(model, "table", variation.table_colour, variation.table_pattern)
    _paint(model, "floor", variation.floor_colour, variation.floor_pattern)
    for name in dressing.WALLS:
        _paint(model, name, variation.wall_colour, variation.wall_pattern)
    _set_light(model, variation)
    for name, shift in zip(franka.CAMERAS, variation.cameras, strict=True):
        _shift_camera(model, name, shift, aim_distance=0.0 if name == "wrist" else _AIM_DISTANCE)
    if variation != Variation():
        mujoco.mj_setConst(model, mujoco.MjData(model))


def _restore(model: mujoco.MjModel, plain: mujoco.MjModel) -> None:
    for name in _array_names():
        getattr(model, name)[...] = getattr(plain, name)
    for name in _HEADLIGHT:
        setattr(model.vis.headlight, name, getattr(plain.vis.headlight, name))


@functools.cache
def _array_names() -> tuple[str, ...]:
    """Return the names of the arrays of a model, without the texels."""
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    return tuple(
        name
        for name in dir(model)
        if isinstance(getattr(model, name), np.ndarray) and name[0] != "_" and name != _TEXELS
    )


def _set_object(model: mujoco.MjModel, name: str, variation: Variation, i: int) -> None:
    """Set shape, size, mass and colour of an object, where they are not the plain ones."""
    geom, body = model.geom(name).id, model.body(name).id
    shape, tallness = variation.object_shapes[i], variation.object_tallness[i]
    scale, mass_ratio = variation.object_scales[i], variation.object_mass_ratios[i]
    if (shape, tallness, scale) != ("box", 1.0, 1.0):
        half_width = franka.CUBE_HALF_SIZE * scale
        _set_shape(model, geom, shape, half_width, half_width * tallness)
        # Until a task places it, it stands on the table.
        model.body_pos[body, 2] = half_width * tallness
        height = model.joint(name).qposadr[0] + 2
        model.qpos0[height] = model.qpos_spring[height] = half_width * tallness
    if mass_ratio != 1.0:
        model.body_mass[body] *= mass_ratio
    if (shape, tallness, scale, mass_ratio) != ("box", 1.0, 1.0, 1.0):
        model.body_inertia[body] = _inertia(model, geom, model.body_mass[body])
    paint = (
        variation.object_hue_shift,
        variation.object_saturations[i],
        variation.object_brightnesses[i],
    )
    if paint != (0.0, 1.0, 1.0):
        hue, saturation, value = colorsys.rgb_to_hsv(*franka.CUBES[name])
        model.geom_rgba[geom, :3] = colorsys.hsv_to_rgb(
            (hue + paint[0]) % 1.0, min(1.0, saturation * paint[1]), min(1.0, value * paint[2])
        )


def _set_shape(
    model: mujoco.MjModel, geom: int, shape: str, half_width: float, half_height: float
) -> None:
    """Make a geom a box or an upright cylinder, with its bounds [m]."""
    half = [half_width, half_width, half_height]
    if shape == "box":
        model.geom_type[geom], model.geom_size[geom] = _BOX, half
        model.geom_rbound[geom] = np.linalg.norm(half)
    else:
        model.geom_type[geom], model.geom_size[geom] = _CYLINDER, [half_width, half_height, 0]
        model.geom_rbound[geom] = np.hypot(half_width, half_height)
    model.geom_aabb[geom, 3:] = half
    tree = model.body_bvhadr[model.geom_bodyid[geom]]
    model.bvh_aabb[tree, 3:] = half  # the body has one geom, so its tree has one node


def _inertia(model: mujoco.MjModel, geom: int, mass: float) -> np.ndarray:
    """Return the principal moments (3,) [kg m²] of a solid box or cylinder."""
    size = model.geom_size[geom]
    if model.geom_type[geom] == _BOX:
        square = size**2
        return mass / 3 * (square.sum() - square)
    radius, half_height, _ = size
    across = mass * (3 * radius**2 + 4 * half_height**2) / 12
    return np.array([across, across, mass * radius**2 / 2])


def _scale_friction(model: mujoco.MjModel, ratio: float) -> None:
    """Scale the sliding friction of objects, table and pads."""
    # Pads are the geoms that outrank the others in a contact.
    touching = model.geom_priority > 0
    touching[[model.geom(name).id for name in ("table", *franka.CUBES)]] = True
    model.geom_friction[touching, 0] *= ratio


def _place_thing(model: mujoco.MjModel, name: str, thing: Thing, *, height: float) -> None:
    """Show a piece of clutter or a mat with its middle at `height` [m]."""
    geom, body = model.geom(name).id, model.body(name).id
    _set_shape(model, geom, thing.shape, thing.half_width, thing.half_height)
    model.geom_rgba[geom] = [*thing.colour, 1.0]
    model.body_pos[body] = [thing.x, thing.y, height]
    model.body_quat[body] = [np.cos(thing.yaw / 2), 0.0, 0.0, np.sin(thing.yaw / 2)]


def _paint(
    model: mujoco.MjModel, name: str, colour: tuple[float, ...] | None, pattern: str
) -> None:
    """Give a geom a colour and a pattern, unless the colour is None."""
    if colour is None:
        return
    geom = model.geom(name).id
    model.geom_rgba[geom] = [*colour, 1.0]
    if pattern != dressing.PLAIN:
        model.geom_matid[geom] = model.material(pattern).id


def _set_light(model: mujoco.MjModel, variation: Variation) -> None:
    """Turn, dim and colour the lamp and the light from everywhere."""
    for axis, angle in zip(np.eye(3), variation.lamp_tilt, strict=False):
        if angle != 0.0:
            model.light_dir[0] = _rotate(model.light_dir[0], _turn(axis, angle))
    tint = np.array([1 + variation.warmth, 1.0, 1 - variation.warmth])
    model.light_diffuse[0] *= tint * variation.lamp_ratio
    headlight = model.vis.headlight
    headlight.ambient = headlight.ambient * tint * variation.ambient_ratio
    headlight.diffuse = headlight.diffuse * tint * variation.ambient_ratio


def _shift_camera(
    model: mujoco.MjModel, name: str, shift: CameraShift, *, aim_distance: float
) -> None:
    """Move a camera in its own frame, point it at where it looked before, then turn it.

    Args:
        model: Changed in place.
        name: Of the camera.
        shift: How far.
        aim_distance: From the camera to the point it keeps looking at [m]; 0 to only move it.
    """
    camera = model.camera(name).id
    model.cam_fovy[camera] += shift.fovy_change_deg
    if shift.move == (0.0, 0.0, 0.0) == shift.turn:
        return
    quat, move = model.cam_quat[camera].copy(), np.array(shift.move)
    if aim_distance:
        ahead = np.array([0.0, 0.0, -aim_distance])
        quat_aim = np.empty(4)
        mujoco.mju_quatZ2Vec(quat_aim, -(ahead - move))  # the camera's z axis points backward
        quat = _product(quat, quat_aim)
    model.cam_pos[camera] += _rotate(move, model.cam_quat[camera])
    for axis, angle in zip(np.eye(3), shift.turn, strict=True):
        quat = _product(quat, _turn(axis, angle))
    model.cam_quat[camera] = quat


def _turn(axis: np.ndarray, angle: float) -> np.ndarray:
    """Return the quaternion (w, x, y, z) of a turn by `angle` [rad]."""
    quat_wxyz = np.empty(4)
    mujoco.mju_axisAngle2Quat(quat_wxyz, axis, angle)
    return quat_wxyz


def _product(left_wxyz: np.ndarray, right_wxyz: np.ndarray) -> np.ndarray:
    quat_wxyz = np.empty(4)
    mujoco.mju_mulQuat(quat_wxyz, left_wxyz, right_wxyz)
    return quat_wxyz


def _rotate(vector: np.ndarray, quat_wxyz: np.ndarray) -> np.ndarray:
    turned = np.empty(3)
    mujoco.mju_rotVecQuat(turned, vector, quat_wxyz)
    return turned
