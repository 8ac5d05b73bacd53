import copy
import dataclasses
import json
import operator

import mujoco
import numpy as np
import pytest

from worldmodel.envs import cameras, dressing, franka, placing, variation, varied
from worldmodel.envs.control import Arm
from worldmodel.envs.disturbance import Disturbance
from worldmodel.envs.variation import FACTORS, RIM, TABLE_OF_FACTORS, Variation, draw, parse
from worldmodel.pose import rotation_delta

UNSEEN = {"object_mass", "friction", "arm_start", "latency", "action_noise", "pose_noise"}
SEEDS = range(100)


@pytest.fixture(scope="module")
def plain():
    return franka.build_model()


@pytest.fixture
def model(plain):
    return copy.copy(plain)


def drawn(text: str, seed: int = 0) -> Variation:
    return draw(parse(text), np.random.default_rng(seed))


def different(model, other) -> set[str]:
    """Names of the arrays, statistics and lights of two models that are not equal bit for bit."""

    def unequal(a, b) -> set[str]:
        return {
            name
            for name in dir(a)
            if name[0] != "_"
            and isinstance(getattr(a, name), np.ndarray | float)
            and not np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
        }

    return (
        unequal(model, other)
        | {f"stat.{name}" for name in unequal(model.stat, other.stat)}
        | {f"light.{name}" for name in unequal(model.vis.headlight, other.vis.headlight)}
    )


def leaves(value, path: str = "") -> dict[str, object]:
    """Every plain number, by its path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for name, item in items for k, v in leaves(item, f"{path}.{name}").items()}


def altered(one: Variation, other: Variation) -> dict[str, object]:
    """The numbers of `one` that `other` does not have, by path."""
    before = leaves(dataclasses.asdict(other))
    after = leaves(dataclasses.asdict(one))
    return {path: value for path, value in after.items() if before.get(path, ...) != value}


# Choosing.


def test_a_text_chooses_factors_and_strengths():
    assert parse("none") == parse("light:none") == variation.Spec()
    assert parse("mild").strengths == tuple((name, "mild") for name in FACTORS)
    assert parse("camera_pose") == parse("camera_pose:strong")
    both = parse("light:mild + camera_pose")
    assert both.strengths == (("light", "mild"), ("camera_pose", "strong"))
    assert both == parse("camera_pose+light:mild")


def test_later_parts_overrule():
    strengths = dict(parse("mild+light:strong+arm_start:none").strengths)
    assert strengths["light"] == "strong" and "arm_start" not in strengths
    assert {strengths[name] for name in strengths if name != "light"} == {"mild"}


@pytest.mark.parametrize("text", ["none", "mild", "light:mild+camera_pose:strong"])
def test_a_choice_is_written_as_it_is_read(text):
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camera_pos", "'camera_pos'; did you mean 'camera_pose'"),
        ("strongg", "did you mean 'strong'"),
        ("light:medium", "unknown strength 'medium'.*none, mild, strong"),
        ("light++mild", "unknown factor ''"),
        ("mild:strong", "unknown factor 'mild'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


# Drawing.


def test_mild_ranges_lie_inside_strong_ones():
    for name, factor in TABLE_OF_FACTORS.items():
        assert factor.ranges, name
        for found in factor.ranges:
            assert found.strong[0] <= found.mild[0] <= found.mild[1] <= found.strong[1], found
            assert found.mild != found.strong, found


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_draws_the_same_alone_and_among_others(name):
    alone, among = drawn(name), leaves(dataclasses.asdict(drawn("strong")))
    changed = altered(alone, Variation())
    assert changed
    assert {path: among[path] for path in changed} == changed


def test_a_seed_gives_one_variation_and_one_number_is_taken():
    assert drawn("strong", 5) == drawn("strong", 5) != drawn("strong", 6)
    states = []
    for text in ("none", "light", "strong"):
        rng = np.random.default_rng(1)
        draw(parse(text), rng)
        states.append(rng.random())
    assert len(set(states)) == 1


def test_a_variation_is_plain_numbers():
    found = dataclasses.asdict(drawn("strong"))
    assert leaves(json.loads(json.dumps(found))) == leaves(found)


def test_nothing_varies_at_none():
    assert drawn("none") == Variation()


def test_a_mild_draw_is_milder():
    for seed in range(20):
        for attribute in ("latency_steps", "action_noise", "position_noise", "warmth"):
            mild, strong = (abs(getattr(drawn(t, seed), attribute)) for t in ("mild", "strong"))
            assert mild < strong


# Clutter keeps away.


def test_clutter_stands_on_the_rim_out_of_everyones_way():
    hand = 0.045 + 0.065  # half the hand, and how far it leans over [m]
    reach_x, reach_y = 0.66 + hand, 0.34 + hand
    for seed in SEEDS:
        for piece in drawn("distractors", seed).clutter:
            radius = piece.half_width * (np.sqrt(2) if piece.shape == "box" else 1)
            x, y = piece.x, abs(piece.y)
            assert y - radius > 0.44 or x - radius > 0.8 or x + radius < -0.04, piece
            assert max(y - radius - reach_y + 0.02, x - radius - reach_x, -x) > 0, piece
            assert y + radius < 0.61 and -0.21 < x - radius and x + radius < 1.01


def test_pieces_of_clutter_do_not_overlap():
    between = np.linalg.norm(RIM[:, None] - RIM[None], axis=-1)[~np.eye(len(RIM), dtype=bool)]
    widest = np.sqrt(2) * variation.CLUTTER_WIDTH.strong[1] / 100
    assert between.min() - 2 * np.sqrt(2) * variation._RIM_JITTER > widest
    assert len(RIM) >= variation.CLUTTER.strong[1] == len(dressing.CLUTTER)
    assert variation.MATS.strong[1] == len(dressing.MATS)


# Changing a model.


def test_plain_is_plain_bit_for_bit(model, plain):
    varied.apply(Variation(), model, plain=plain)
    assert different(model, plain) == set()


def test_every_array_comes_back(model, plain):
    for seed in range(5):
        varied.apply(drawn("strong", seed), model, plain=plain)
        assert len(different(model, plain)) > 10
    varied.apply(Variation(), model, plain=plain)
    assert different(model, plain) == set()


def test_a_variation_does_not_depend_on_the_one_before(model, plain):
    fresh = copy.copy(plain)
    varied.apply(drawn("strong", 1), model, plain=plain)
    varied.apply(drawn("strong", 2), model, plain=plain)
    varied.apply(drawn("strong", 2), fresh, plain=plain)
    assert different(model, fresh) == set()


SHAPE = set("geom_size geom_rbound geom_aabb bvh_aabb body_pos qpos0 qpos_spring".split())
CENTRE = {"cam_poscom0", "light_poscom0"}  # the scene's centre of mass, in disguise
INERTIA = CENTRE | set("body_inertia body_invweight0 dof_invweight0 dof_M0 dof_length".split())
MASS = {"body_mass", "body_subtreemass"}
CAMERA = {"cam_pos", "cam_quat", "cam_pos0", "cam_poscom0", "cam_mat0"}
PAINT = {"geom_rgba", "geom_matid"}
LIGHT = {"light_dir", "light_dir0", "light_diffuse", "light.ambient", "light.diffuse"}
MAY_CHANGE = {
    "object_shape": SHAPE | INERTIA | {"geom_type"},
    "object_size": SHAPE | INERTIA,
    "object_colour": {"geom_rgba"},
    "object_mass": MASS | INERTIA,
    "friction": {"geom_friction"},
    "distractors": (SHAPE | CENTRE | {"geom_type", "geom_rgba", "body_quat"})
    - {"qpos0", "qpos_spring"},
    "table_texture": PAINT,
    "light": LIGHT,
    "camera_pose": CAMERA,
    "field_of_view": {"cam_fovy"},
    "background": PAINT,
    "arm_start": set(),
    "latency": set(),
    "action_noise": set(),
    "pose_noise": set(),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_changes_what_is_its_own_and_nothing_else(model, plain, name):
    changed = set()
    for seed in range(3):
        varied.apply(drawn(name, seed), model, plain=plain)
        changed |= different(model, plain)
    assert changed <= MAY_CHANGE[name]
    assert bool(changed) == bool(MAY_CHANGE[name])


def compiled(monkeypatch, variation_: Variation) -> mujoco.MjModel:
    """What the compiler makes of a scene written with this variation in the first place."""

    def dress(spec: mujoco.MjSpec) -> None:
        dressing.add_dressing(spec)
        for i, name in enumerate(franka.CUBES):
            geom, body = spec.geom(name), spec.body(name)
            half = franka.CUBE_HALF_SIZE * variation_.object_scales[i]
            height = half * variation_.object_tallness[i]
            if variation_.object_shapes[i] == "cylinder":
                geom.type, geom.size = mujoco.mjtGeom.mjGEOM_CYLINDER, [half, height, 0]
            else:
                geom.size = [half, half, height]
            geom.mass *= variation_.object_mass_ratios[i]
            body.pos[2] = height
        for name, camera in zip(franka.CAMERAS, variation_.cameras, strict=True):
            spec.camera(name).fovy += camera.fovy_change_deg
        spec.geom("table").rgba = [*variation_.table_colour, 1]
        if variation_.table_pattern != dressing.PLAIN:
            spec.geom("table").material = variation_.table_pattern

    monkeypatch.setattr(franka, "add_dressing", dress)
    return franka.build_model()


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_model_is_what_the_compiler_would_have_made(monkeypatch, model, plain, seed):
    text = "object_shape+object_size+object_mass+table_texture+field_of_view"
    found = drawn(text, seed)
    varied.apply(found, model, plain=plain)
    expected = compiled(monkeypatch, found)
    assert different(model, plain)
    for name in different(model, expected):
        if name.startswith("stat."):
            continue  # scales of the solver's tolerance and of markers: a scene keeps its own
        made, wanted = (operator.attrgetter(name)(m) for m in (model, expected))
        np.testing.assert_allclose(made, wanted, rtol=1e-9, atol=1e-12, err_msg=name)


# What the camera sees.


def picture(model, backend, *, camera="exterior"):
    renderer = cameras.make_renderer(model, 64, 64, backend=backend)
    image = renderer.render(Arm(model).data, camera)
    renderer.close()
    return image


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_is_seen_or_is_not(model, plain, backend, name):
    before = picture(model, backend)
    changes = []
    for seed in range(3):
        varied.apply(drawn(name, seed), model, plain=plain)
        changes.append(np.abs(picture(model, backend).astype(int) - before).max())
    assert min(changes) == 0 if name in UNSEEN else max(changes) > 20


def test_a_renderer_shows_a_model_changed_under_it(model, plain, backend):
    renderer = cameras.make_renderer(model, 64, 64, backend=backend)
    arm = Arm(model)
    before = renderer.render(arm.data, "exterior")
    for camera in franka.CAMERAS:
        varied.apply(drawn("strong", 1), model, plain=plain)
        arm.reset()
        changed = renderer.render(arm.data, camera)
        np.testing.assert_array_equal(changed, picture(model, backend, camera=camera))
    varied.apply(Variation(), model, plain=plain)
    arm.reset()
    np.testing.assert_array_equal(renderer.render(arm.data, "exterior"), before)
    assert np.abs(changed.astype(int) - before).mean() > 5
    renderer.close()


@pytest.mark.parametrize("text", ["camera_pose", "field_of_view", "camera_pose+field_of_view"])
def test_the_workspace_stays_in_the_picture(model, plain, text):
    arm = Arm(model)
    air = np.stack(np.meshgrid(*zip(placing.WORKSPACE_LOW, placing.WORKSPACE_HIGH, strict=True)))
    table = np.stack(np.meshgrid(*zip(placing.TABLE_LOW, placing.TABLE_HIGH, strict=True), [0.02]))
    points = np.concatenate([air.reshape(3, -1), table.reshape(3, -1)], axis=1).T
    for seed in SEEDS:
        varied.apply(drawn(text, seed), model, plain=plain)
        arm.reset()
        for name in ("exterior", "exterior_right"):
            camera = model.camera(name).id
            offsets = points - arm.data.cam_xpos[camera]
            x, y, depth = (offsets @ arm.data.cam_xmat[camera].reshape(3, 3)).T
            half = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
            assert (np.abs([x, y]) < half * -depth).all(), (seed, name)


# What the gripper feels.


def move(arm: Arm, *, down: float = 0.0, close: float = 0.0, steps: int = 1) -> None:
    for _ in range(steps):
        arm.step(np.array([0, 0, -down, 0, 0, 0, close]))


@pytest.mark.parametrize("shape", ["box", "cylinder"])
@pytest.mark.parametrize("size", [(0.84, 0.8), (0.84, 1.4), (1.2, 0.8), (1.2, 1.4)])
def test_the_extremes_of_objects_stand_and_can_be_lifted(model, plain, shape, size):
    found = Variation(
        object_shapes=(shape,) * 3,
        object_scales=(size[0],) * 3,
        object_tallness=(size[1],) * 3,
        object_mass_ratios=(variation.MASS.strong[1],) * 3,
        friction_ratio=variation.FRICTION.strong[0],
    )
    varied.apply(found, model, plain=plain)
    arm = Arm(model)
    height = franka.object_half_height(model, "green")
    assert height == pytest.approx(0.025 * size[0] * size[1])
    arm.data.joint("green").qpos[:3] = 0.5, 0.0, height
    arm.teleport(np.array([0.5, 0.0, 0.15]))
    arm.settle(1.0)
    np.testing.assert_allclose(arm.data.body("green").xpos, [0.5, 0.0, height], atol=1e-3)
    move(arm, down=0.06, steps=2)
    move(arm, close=1.0, steps=2)
    move(arm, down=-0.05, steps=3)
    move(arm, steps=4)
    assert placing.held(arm, "green")
    assert arm.data.body("green").xpos[2] > height + 0.13


def test_friction_decides_how_far_an_object_slides(model, plain):
    slid = []
    for ratio in (0.6, 0.8, 1.0):
        varied.apply(Variation(friction_ratio=ratio), model, plain=plain)
        arm = Arm(model)
        arm.settle(0.2)
        before = arm.data.body("red").xpos.copy()
        arm.data.joint("red").qvel[0] = 0.8
        arm.settle(0.5)
        slid.append(np.linalg.norm(arm.data.body("red").xpos - before))
    # v² / (2 mu g); the scene's own 1.0 is the larger of the cube's and the table's.
    np.testing.assert_allclose(slid, 0.8**2 / (2 * 9.81 * np.array([0.6, 0.8, 1.0])), rtol=0.15)


# What comes between policy and arm.

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (20, 7)) * 0.05
PROPRIO = np.array([0.5, 0.1, 0.3, np.pi, 0.0, 0.2, 0.4], np.float32)


def test_without_disturbance_nothing_is_touched():
    disturbance, rng = Disturbance(Variation()), np.random.default_rng(0)
    for action in ACTIONS:
        np.testing.assert_array_equal(disturbance.action(action, rng), action)
    np.testing.assert_array_equal(disturbance.proprio(PROPRIO, rng), PROPRIO)
    assert rng.random() == np.random.default_rng(0).random()  # and nothing drawn


@pytest.mark.parametrize("late", [0.3, 1.0])
def test_latency_moves_part_of_an_action_into_the_next_step(late):
    disturbance, rng = Disturbance(Variation(latency_steps=late)), np.random.default_rng(0)
    done = np.stack([disturbance.action(action, rng) for action in ACTIONS])
    before = np.vstack([np.zeros(7), ACTIONS[:-1]])
    np.testing.assert_allclose(done, late * before + (1 - late) * ACTIONS, atol=1e-15)
    disturbance.reset()
    np.testing.assert_allclose(disturbance.action(ACTIONS[0], rng), (1 - late) * ACTIONS[0])


def test_an_actions_error_is_a_part_of_it_and_spares_the_gripper():
    disturbance, rng = Disturbance(Variation(action_noise=0.1)), np.random.default_rng(0)
    action = np.array([0.07, -0.02, 0.0, 0.1, 0.0, -0.05, 1.0])
    errors = np.stack([disturbance.action(action, rng) for _ in range(4000)]) - action
    np.testing.assert_allclose(errors.std(axis=0), 0.1 * abs(action) * (action != 1), rtol=0.05)
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=1e-3)


def test_measured_poses_err_as_told_across_the_wrap_of_angles():
    found = Variation(position_noise=0.003, rotation_noise=0.01)
    disturbance, rng = Disturbance(found), np.random.default_rng(0)
    measured = np.stack([disturbance.proprio(PROPRIO, rng) for _ in range(4000)])
    assert measured.dtype == np.float32 and (abs(measured[:, 3]) <= np.float32(np.pi)).all()
    np.testing.assert_allclose(measured[:, :3].std(axis=0), 0.003, rtol=0.05)
    np.testing.assert_array_equal(measured[:, 6], PROPRIO[6])
    angles = np.stack([rotation_delta(PROPRIO[3:6].astype(float), m) for m in measured[:, 3:6]])
    np.testing.assert_allclose(angles.std(axis=0), 0.01, rtol=0.05)
    assert abs(angles).max() < 0.06
