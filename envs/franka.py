"""The scene: the arm on a table with coloured cubes, three cameras, two lights.

The base frame of the arm is the world frame: x forward over the table, y to the arm's left, z up,
and the table top at z = 0.
"""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

import mujoco
import numpy as np

from worldmodel.envs import panda
from worldmodel.envs.drawer import add_drawer
from worldmodel.envs.dressing import add_dressing

CUBES = {  # name: colour
    "red": (0.84, 0.16, 0.14),
    "green": (0.16, 0.62, 0.28),
    "blue": (0.14, 0.32, 0.80),
}
CUBE_HALF_SIZE = 0.025  # [m]
CAMERAS = ("exterior", "exterior_right", "wrist")
TIMESTEP = 0.002  # [s]
MAX_IMAGE_SIZE = 1024  # [pixels]


def build_model(*, drawer: bool = False) -> mujoco.MjModel:
    """Compile the scene.

    Args:
        drawer: Whether a cabinet with a drawer stands on the table, see `worldmodel.envs.drawer`.
    """
    spec = mujoco.MjSpec.from_string(panda.MJCF)
    for body in spec.bodies:
        if body.name != "world":
            body.gravcomp = 1.0  # as the real arm's controller does
    _set_physics(spec)
    _set_look(spec)
    _add_furniture(spec)
    _add_cubes(spec)
    if drawer:
        add_drawer(spec)
    _add_cameras(spec)
    add_dressing(spec)
    return spec.compile()


def object_half_height(model: mujoco.MjModel, name: str) -> float:
    """Return how high the centre of an object is above what it stands on [m].

    It varies (`worldmodel.envs.variation`); that of a plain cube is `CUBE_HALF_SIZE`.
    """
    return float(model.geom_aabb[model.geom(name).id, 5])


def object_half_width(model: mujoco.MjModel, name: str) -> float:
    """Return half the width of an object between the fingers [m]."""
    return float(model.geom_aabb[model.geom(name).id, 3])


def _set_physics(spec: mujoco.MjSpec) -> None:
    """Choose the solver settings with which cubes do not creep or slip in the gripper."""
    option = spec.option
    option.timestep = TIMESTEP
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 10.0
    option.jacobian = mujoco.mjtJacobian.mjJAC_DENSE  # the sparse solver of mujoco 4.0.0 is wrong
    # With the newer convex collider cylinders slip out of the gripper.
    option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)


def _set_look(spec: mujoco.MjSpec) -> None:
    """Choose light, sky and drawing quality.

    Everything is flat colour without highlights, so that both renderers draw the same picture.
    """
    visual = spec.visual
    visual.global_.offwidth = visual.global_.offheight = MAX_IMAGE_SIZE
    visual.quality.offsamples = 0
    visual.quality.shadowsize = 1024
    # Coarse shapes are twice as fast to draw without a GPU.
    visual.quality.numslices, visual.quality.numstacks, visual.quality.numquads = 16, 8, 1
    visual.headlight.ambient = [0.36] * 3
    visual.headlight.diffuse = [0.26] * 3
    visual.headlight.specular = [0.0] * 3
    visual.map.znear, visual.map.zfar = 0.01, 10.0
    spec.stat.extent, spec.stat.center = 1.0, [0.4, 0.0, 0.2]
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.3, 0.9, 2.0],
        dir=[0.15, -0.5, -1.0],
        diffuse=[0.48] * 3,
        specular=[0.0] * 3,
    )
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        width=8,
        height=48,
        rgb1=[0.55, 0.61, 0.68],
        rgb2=[0.55, 0.61, 0.68],
    )


def _add_furniture(spec: mujoco.MjSpec) -> None:
    """Add floor and table."""
    box, plane = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE
    world = spec.worldbody
    world.add_geom(
        name="floor", type=plane, pos=[0, 0, -0.75], size=[4, 4, 0.1], rgba=[0.40, 0.43, 0.47, 1]
    )
    world.add_geom(
        name="table",
        type=box,
        pos=[0.4, 0, -0.02],
        size=[0.6, 0.6, 0.02],
        rgba=[0.74, 0.63, 0.49, 1],
        friction=[0.8, 0.005, 0.0001],
    )
    world.add_geom(
        name="table_base",
        type=box,
        pos=[0.4, 0, -0.395],
        size=[0.5, 0.5, 0.355],
        rgba=[0.30, 0.31, 0.34, 1],
        contype=0,
        conaffinity=0,
    )


def _add_cubes(spec: mujoco.MjSpec) -> None:
    """Add the free cubes, in a row; a task moves them."""
    for i, (name, colour) in enumerate(CUBES.items()):
        body = spec.worldbody.add_body(name=name, pos=[0.45, 0.2 * (i - 1), CUBE_HALF_SIZE])
        body.add_freejoint(name=name)
        body.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[CUBE_HALF_SIZE] * 3,
            mass=0.08,
            rgba=[*colour, 1.0],
            condim=4,
            friction=[1.0, 0.01, 0.0001],
            solref=[0.01, 1],
            solimp=[0.95, 0.99, 0.001, 0.5, 2],
        )


def _add_cameras(spec: mujoco.MjSpec) -> None:
    """Add two cameras beside the table, as in DROID, and one on the hand."""
    target = [0.42, 0.0, 0.20]
    for name, side in (("exterior", 1), ("exterior_right", -1)):
        position = [1.05, 0.75 * side, 0.75]
        spec.worldbody.add_camera(
            name=name, pos=position, quat=_looking_at(position, target, up=[0, 0, 1]), fovy=44
        )
    position, target = [0.10, 0.0, 0.04], [0.015, 0.0, 0.17]  # in the hand's frame
    spec.body("hand").add_camera(
        name="wrist", pos=position, quat=_looking_at(position, target, up=[1, 0, 0]), fovy=75
    )


def _looking_at(position: list[float], target: list[float], *, up: list[float]) -> np.ndarray:
    """Return the orientation (w, x, y, z) of a camera: its -z axis to the target, y axis up."""
    back = np.subtract(position, target)
    back = back / np.linalg.norm(back)
    right = np.cross(up, back)
    right = right / np.linalg.norm(right)
    quat_wxyz = np.empty(4)
    mujoco.mju_mat2Quat(quat_wxyz, np.stack([right, np.cross(back, right), back], axis=1).ravel())
    return quat_wxyz
