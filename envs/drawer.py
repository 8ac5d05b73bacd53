"""A cabinet with one drawer, which slides towards the arm by an upright knob."""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

import mujoco

CABINET_POSITION = (0.63, -0.12, 0.0)  # [m] middle of the drawer's closed front, on the table
TRAVEL = 0.18  # [m]
KNOB_OFFSET = (-0.035, 0.0, 0.075)  # [m] middle of the knob from the middle of the front
WOOD, DARK, METAL = (0.55, 0.36, 0.22, 1.0), (0.42, 0.27, 0.16, 1.0), (0.75, 0.75, 0.78, 1.0)


def add_drawer(spec: mujoco.MjSpec) -> None:
    """Add the cabinet, fixed to the table, and its drawer, a body and joint named ``drawer``.

    The joint is 0 closed and grows to `TRAVEL` [m] as the drawer comes out along -x.
    """
    box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
    cabinet = spec.worldbody.add_body(name="cabinet", pos=list(CABINET_POSITION))
    for name, position, size in (
        ("cabinet_left", [0.07, 0.068, 0.05], [0.07, 0.006, 0.05]),
        ("cabinet_right", [0.07, -0.068, 0.05], [0.07, 0.006, 0.05]),
        ("cabinet_back", [0.134, 0.0, 0.05], [0.006, 0.062, 0.05]),
        ("cabinet_top", [0.07, 0.0, 0.104], [0.074, 0.078, 0.004]),
    ):
        cabinet.add_geom(name=name, type=box, pos=position, size=size, rgba=WOOD)
    drawer = cabinet.add_body(name="drawer")
    drawer.add_joint(
        name="drawer",
        type=mujoco.mjtJoint.mjJNT_SLIDE,
        axis=[-1, 0, 0],
        range=[0.0, TRAVEL],
        damping=[5.0, 0.0, 0.0],
        frictionloss=1.0,
    )
    for name, position, size in (
        ("drawer_front", [-0.006, 0.0, 0.05], [0.006, 0.074, 0.046]),
        ("drawer_floor", [0.06, 0.0, 0.012], [0.06, 0.055, 0.004]),
    ):
        drawer.add_geom(name=name, type=box, pos=position, size=size, rgba=DARK, mass=0.15)
    x, y, z = KNOB_OFFSET
    drawer.add_geom(
        name="drawer_stem",
        type=box,
        pos=[x / 2 - 0.006, y, 0.05],
        size=[-x / 2, 0.008, 0.008],
        rgba=METAL,
        mass=0.02,
    )
    drawer.add_geom(
        name="drawer_knob",
        type=capsule,
        fromto=[x, y, 0.05, x, y, z + 0.025],
        size=[0.011, 0.0, 0.0],
        rgba=METAL,
        mass=0.03,
        condim=4,
        friction=[1.0, 0.01, 0.0001],
    )
