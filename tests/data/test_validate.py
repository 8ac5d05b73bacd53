"""Each fault is planted in otherwise good data, and exactly that must be found, where it is."""

import functools
import importlib.util
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from worldmodel.data.checks.findings import KINDS
from worldmodel.data.collect import collect
from worldmodel.data.frames import FrameReadError, LazyFrames
from worldmodel.data.mapping import (
    CameraColumns,
    ColumnMapping,
    GripperColumns,
    PositionColumns,
    RawEpisode,
    RotationColumns,
    TimeColumns,
    UsableColumns,
    to_episode,
)
from worldmodel.data.rotations import to_quat_xyzw, to_rotvec
from worldmodel.data.source import open_source
from worldmodel.data.store import EpisodeStore
from worldmodel.data.validate import CheckReport, Finding, check, check_episode, check_set
from worldmodel.pose import euler_to_matrix, matrix_to_euler


def _load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"validate_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


truth = _load(Path(__file__).parent / "formats" / "truth.py")

MAPPING = ColumnMapping(
    position=PositionColumns(("p",)),
    rotation=RotationColumns(("r",)),
    gripper=GripperColumns(("g",)),
    time=TimeColumns(("t",)),
    hz=15.0,
    joints=("q",),
    cameras={camera: CameraColumns(camera) for camera in truth.CAMERAS},
)
WITH_VELOCITY = replace(MAPPING, actions={"cartesian_velocity": ("v",)})
NO_JOINTS = replace(MAPPING, joints=())
UNVERIFIED = (None, None, "rotation_unverified")
EPISODES = 4

Place = tuple[int | None, int | None, str]


@functools.cache
def make_raw(number: int, *, rows: int = 30, jitter: float = 0.0) -> RawEpisode:
    recording = truth.make_truth(number, rows=rows, jitter=jitter, height=24, width=32)
    return RawEpisode(
        name=f"recording {number}",
        columns={
            "p": recording.position,
            "r": recording.euler,
            "g": recording.gripper,
            "t": recording.times,
            "q": recording.joints,
        },
        cameras=recording.frames,
    )


@pytest.fixture(params=[0, 47], ids=lambda seed: f"seed{seed}")
def raws(request) -> list[RawEpisode]:
    return [make_raw(request.param + k) for k in range(EPISODES)]


def column(raw: RawEpisode, name: str, values: np.ndarray) -> RawEpisode:
    return replace(raw, columns={**raw.columns, name: values})


def camera(raw: RawEpisode, name: str, frames: object) -> RawEpisode:
    return replace(raw, cameras={**raw.cameras, name: frames})


def rows(raw: RawEpisode, index: np.ndarray | slice) -> RawEpisode:
    return replace(
        raw,
        columns={k: v[index] for k, v in raw.columns.items()},
        cameras={k: v[index] for k, v in raw.cameras.items()},
    )


def changed(raw: RawEpisode, name: str, index: Any, value: Any) -> RawEpisode:
    values = raw.columns[name].copy()
    values[index] = value
    return column(raw, name, values)


def paused(raw: RawEpisode, at: int, length: int) -> RawEpisode:
    """The same with a pause; the clock and the pictures go on."""
    count = len(raw.columns["t"]) + length
    longer = make_raw(0, rows=count)
    index = np.r_[: at + 1, [at] * length, at + 1 : count - length]
    moved = {k: v[index] for k, v in raw.columns.items()}
    return replace(raw, columns=moved | {"t": longer.columns["t"]}, cameras=longer.cameras)


def with_velocity(raw: RawEpisode, lag: int = 0) -> RawEpisode:
    """Adds DROID's normalised velocity command, which takes effect `lag` steps later."""
    rotation = euler_to_matrix(raw.columns["r"])
    turns = to_rotvec(rotation[1:] @ np.swapaxes(rotation[:-1], -1, -2))
    velocity = np.concatenate([np.diff(raw.columns["p"], axis=0) / 0.075, turns / 0.15], axis=1)
    return column(raw, "v", np.roll(np.concatenate([velocity, np.zeros((1, 6))]), -lag, axis=0))


def find(raws: list[RawEpisode], mapping: ColumnMapping = MAPPING) -> list[Finding]:
    found, facts = [], []
    for i, raw in enumerate(raws):
        of_episode, fact = check_episode(raw, mapping, episode=i, format="memory")
        found += of_episode
        facts += [] if fact is None else [fact]
    return found + check_set(facts, mapping)


def places(found: list[Finding]) -> set[Place]:
    return {(f.episode, f.step, f.code) for f in found}


def expect(
    raws: list[RawEpisode], *expected: Place, mapping: ColumnMapping = MAPPING
) -> list[Finding]:
    """Requires exactly these findings, each once; returns them."""
    found = find(raws, mapping)
    assert places(found) == set(expected), found
    assert len(found) == len(expected), found
    return found


def everywhere(code: str, step: int | None = None) -> list[Place]:
    return [(i, step, code) for i in range(EPISODES)]


# ------------------------------------------------------------------------------- nothing is wrong


def test_good_recordings_give_no_finding_at_all():
    assert find([make_raw(k) for k in range(40)]) == []
    assert find([with_velocity(make_raw(k)) for k in range(4)], WITH_VELOCITY) == []


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_jitter_of_real_sensors_are_no_fault(seed):
    rng = np.random.default_rng(seed)
    noisy = []
    for k in range(20):
        raw = make_raw(50 * seed + k, jitter=0.1)
        for name, sigma in (("p", 1e-3), ("r", 2e-3), ("q", 2e-3), ("g", 0.01)):
            values = raw.columns[name]
            raw = column(raw, name, values + rng.normal(0, sigma, values.shape))
        noisy.append(with_velocity(raw))
    assert find(noisy, WITH_VELOCITY) == []


@pytest.mark.slow
def test_simulated_episodes_have_no_error_or_warning(tmp_path):
    collect(tmp_path / "store", episodes=4, image_size=48, workers=1, progress=False)
    report = check(open_source(tmp_path / "store"), progress=False)
    assert [f.code for f in report.findings] == ["rotation_unverified"]
    assert report.findings[0].severity == "info"
    assert (report.episodes, report.steps, report.clock_hz) == (4, 100, 4.0)


def test_the_same_recordings_in_other_units_and_conventions_are_as_good(raws):
    mapping = replace(
        MAPPING,
        position=PositionColumns(("p",), unit="mm"),
        rotation=RotationColumns(("r",), form="quat_wxyz"),
        gripper=GripperColumns(("g",), open=80, closed=0),
        time=TimeColumns(("t",), unit="ms"),
        joints_unit="deg",
    )
    converted = [
        replace(
            raw,
            columns={
                "p": 1000 * raw.columns["p"],
                "r": to_quat_xyzw(euler_to_matrix(raw.columns["r"]))[:, [3, 0, 1, 2]],
                "g": 80 * (1 - raw.columns["g"]),
                "gripper_width": 0.08 * (1 - raw.columns["g"]),
                "t": 1000 * raw.columns["t"],
                "q": np.degrees(raw.columns["q"]),
            },
        )
        for raw in raws
    ]
    expect(converted, mapping=mapping)


# ------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("name", ["p", "r", "g", "t", "q"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(raws, name, value):
    index = 7 if raws[1].columns[name].ndim == 1 else (7, 1)
    raws[1] = changed(raws[1], name, index, value)
    (found,) = expect(raws, (1, 7, "not_finite"))
    assert found.severity == "error"


def test_commands_that_are_not_finite_are_a_warning(raws):
    raws = [with_velocity(raw) for raw in raws]
    raws[1] = changed(raws[1], "v", (7, 1), np.nan)
    (found,) = expect(raws, (1, 7, "not_finite"), mapping=WITH_VELOCITY)
    assert found.severity == "warning"


@pytest.mark.parametrize(("factor", "unit"), [(1000, "mm"), (100, "cm")])
def test_position_unit(raws, factor, unit):
    scaled = [column(raw, "p", factor * raw.columns["p"]) for raw in raws]
    for found in expect(scaled, *everywhere("position_unit")):
        assert found.fix == f"`position: {{key: [p], unit: {unit}}}`"
    mapping = replace(MAPPING, position=PositionColumns(("p",), unit=unit))
    for found in expect(raws, *everywhere("position_unit"), mapping=mapping):
        assert "unit: m}" in found.fix


def test_a_position_that_no_unit_explains_is_a_warning(raws):
    raws[2] = column(raws[2], "p", 5e-5 * raws[2].columns["p"])
    (found,) = expect(raws, (2, None, "position_unit"))
    assert found.severity == "warning"


def test_degrees(raws):
    degrees = [column(raw, "r", np.degrees(raw.columns["r"])) for raw in raws]
    for found in expect(degrees, *everywhere("angles_in_degrees")):
        assert found.fix == "`rotation: {key: [r], form: euler_xyz, unit: deg}`"
    joints = [column(raw, "q", np.degrees(raw.columns["q"])) for raw in raws]
    for found in expect(joints, *everywhere("angles_in_degrees")):
        assert found.fix == "`joints_unit: deg`"


def test_radians_declared_as_degrees(raws):
    mapping = replace(MAPPING, rotation=RotationColumns(("r",), unit="deg"))
    for found in expect(raws, *everywhere("angles_in_radians"), mapping=mapping):
        assert found.fix == "`rotation: {key: [r], form: euler_xyz, unit: rad}`"
    expect(raws, *everywhere("angles_in_radians"), mapping=replace(MAPPING, joints_unit="deg"))


def test_joint_limits(raws):
    raws[3] = changed(raws[3], "q", (5, 3), 0.5)
    (found,) = expect(raws, (3, 5, "joint_limits"))
    assert "joint 4" in found.message


# A small jump at an end of an episode is a fast step.
@pytest.mark.parametrize(("row", "size"), [(0, 0.4), (12, 0.4), (29, 0.4), (12, 0.1)])
def test_outliers_of_position(raws, row, size):
    moved = raws[1].columns["p"][row] + [0, size, 0]
    raws[1] = changed(raws[1], "p", row, moved)
    expect(raws, (1, max(row, 1), "outlier"))


def test_outliers_of_rotation(raws):
    rotation = euler_to_matrix(np.array([0.4, 0, 0])) @ euler_to_matrix(raws[0].columns["r"][9])
    raws[0] = changed(raws[0], "r", 9, matrix_to_euler(rotation))
    expect(raws, (0, 9, "outlier"))


def test_idle(raws):
    raws[2] = paused(raws[2], 10, 30)
    (found,) = expect(raws, (2, 10, "idle"))
    assert found.severity == "info" and "51 %" in found.message


def test_idle_steps_that_the_log_leaves_out_are_no_finding(raws):
    raws[2] = paused(raws[2], 10, 30)
    raws = [column(raw, "let_go", np.zeros(len(raw.columns["t"]), bool)) for raw in raws]
    raws[2] = changed(raws[2], "let_go", slice(10, 40), True)
    expect(raws, mapping=replace(MAPPING, usable=UsableColumns(("let_go",), inverted=True)))


@pytest.mark.parametrize("moving", ["p", "r", "g"])
def test_an_arm_that_only_moves_turns_or_grips_is_not_idle(moving):
    raws = [make_raw(0)]
    for name in {"p", "r", "g"} - {moving}:
        raws = [column(raw, name, np.repeat(raw.columns[name][:1], 30, axis=0)) for raw in raws]
    raws = [column(raw, "g", np.linspace(0, 1, 30)) for raw in raws] if moving == "g" else raws
    assert "idle" not in {f.code for f in find(raws, NO_JOINTS)}


def test_an_idle_set_is_a_warning(raws):
    found = find([paused(raw, 10, 60) for raw in raws])
    assert {(f.episode, f.severity) for f in found} == {
        (None, "warning"),
        *((i, "info") for i in range(EPISODES)),
    }
    assert {f.code for f in found} == {"idle"}


def test_constant_columns(raws):
    closed = [column(raw, "g", np.full(30, 0.5)) for raw in raws]
    (found,) = expect(closed, (None, None, "constant_column"))
    assert found.severity == "info" and found.message.startswith("gripper is 0.5")
    level = [changed(raw, "p", (slice(None), 2), 0.3) for raw in raws]
    found = expect(level, (None, None, "constant_column"), UNVERIFIED, mapping=NO_JOINTS)
    assert found[0].severity == "warning" and found[0].message.startswith("z is 0.3")


def test_a_hand_without_a_gripper_has_no_constant_column(raws):
    expect(raws, mapping=replace(MAPPING, gripper=GripperColumns(())))


def test_duplicates(raws):
    raws[3] = raws[1]
    (found,) = expect(raws, (3, None, "duplicate_episode"))
    assert "episode 1" in found.message


@pytest.mark.parametrize(("length", "severity"), [(6, "warning"), (1, "error"), (0, "error")])
def test_too_short(raws, length, severity):
    raws[1] = rows(raws[1], slice(length))
    (found,) = expect(raws, (1, None, "too_short"))
    assert found.severity == severity


def test_a_column_that_is_missing_or_has_another_length_cannot_be_read(raws):
    without = dict(raws[1].columns)
    del without["g"]
    raws[1] = replace(raws[1], columns=without)
    raws[2] = column(raws[2], "q", raws[2].columns["q"][:20])
    first, second = expect(raws, (1, None, "unreadable"), (2, None, "unreadable"))
    assert "no column 'g'" in first.message and "rows do not match" in second.message


# ------------------------------------------------------------------------------------ the gripper


def test_gripper_range(raws):
    raws[1] = column(raws[1], "g", 255 * raws[1].columns["g"])
    first = int(np.flatnonzero(raws[1].columns["g"] > 1.05)[0])
    (found,) = expect(raws, (1, first, "gripper_range"))
    assert "bytes" in found.message


def test_a_gripper_in_metres(raws):
    width = [column(raw, "g", 0.08 * (1 - raw.columns["g"])) for raw in raws]
    (found,) = expect(width, (None, None, "gripper_range"))
    assert found.fix == "`gripper: {key: g, open: 0.08, closed: 0}`"


def test_a_gripper_that_closes_as_its_width_grows(raws):
    raws = [column(raw, "finger_width", 0.08 * (1 - raw.columns["g"])) for raw in raws]
    expect(raws)
    inverted = replace(MAPPING, gripper=GripperColumns(("g",), open=1, closed=0))
    found = find(raws, inverted)
    assert places(found) == {*everywhere("gripper_inverted"), (None, None, "gripper_inverted")}
    assert {f.severity for f in found if f.episode is not None} == {"error"}
    assert found[0].fix == "`gripper: {key: g, open: 0, closed: 1}`"


def test_a_set_that_starts_closed_is_a_warning(raws):
    inverted = [column(raw, "g", 1 - raw.columns["g"]) for raw in raws]
    (found,) = expect(inverted, (None, None, "gripper_inverted"))
    assert found.severity == "warning"


@pytest.mark.parametrize("kind", ["gripper_position", "gripper_velocity"])
def test_a_gripper_that_moves_against_its_command_is_an_error(raws, kind):
    commanded = [
        column(
            raw,
            "c",
            np.r_[raw.columns["g"][1:], 0]
            if kind == "gripper_position"
            else np.r_[np.diff(raw.columns["g"]), 0],
        )
        for raw in raws
    ]
    mapping = replace(MAPPING, actions={kind: ("c",)})
    expect(commanded, mapping=mapping)
    inverted = [column(raw, "g", 1 - raw.columns["g"]) for raw in commanded]
    (found,) = expect(inverted, (None, None, "gripper_inverted"), mapping=mapping)
    assert found.severity == "error" and kind in found.message


# --------------------------------------------------------------------------------- the rotations


def as_form(rotation: np.ndarray, form: str) -> np.ndarray:
    """Writes rotations in a form, without the code that reads them."""
    inverse = np.swapaxes(rotation, -1, -2)
    return {
        "euler_xyz": lambda: matrix_to_euler(rotation),
        "euler_ZYX": lambda: matrix_to_euler(rotation)[:, ::-1],
        "euler_XYZ": lambda: -matrix_to_euler(inverse),
        "euler_zyx": lambda: -matrix_to_euler(inverse)[:, ::-1],
        "rotvec": lambda: to_rotvec(rotation),
        "quat_xyzw": lambda: to_quat_xyzw(rotation),
        "quat_wxyz": lambda: to_quat_xyzw(rotation)[:, [3, 0, 1, 2]],
        "matrix": lambda: rotation.reshape(-1, 9),
        "rot6d": lambda: np.swapaxes(rotation, -1, -2)[:, :2].reshape(-1, 6),
        "rot6d_rows": lambda: rotation[:, :2].reshape(-1, 6),
    }[form]()


THREE = ("euler_xyz", "euler_XYZ", "euler_zyx", "euler_ZYX", "rotvec")
PAIRS = [
    *itertools.permutations(THREE, 2),
    *itertools.permutations(("quat_xyzw", "quat_wxyz"), 2),
    *itertools.permutations(("rot6d", "rot6d_rows"), 2),
]


@pytest.mark.parametrize(("true", "declared"), PAIRS)
def test_rotation_convention(true, declared):
    raw = make_raw(PAIRS.index((true, declared)))
    noise = euler_to_matrix(np.random.default_rng(0).normal(0, 2e-3, (30, 3)))
    raw = column(raw, "r", as_form(noise @ euler_to_matrix(raw.columns["r"]), true))
    expect([raw], mapping=replace(MAPPING, rotation=RotationColumns(("r",), form=true)))
    mapping = replace(MAPPING, rotation=RotationColumns(("r",), form=declared))
    (found,) = expect([raw], (0, None, "rotation_convention"), mapping=mapping)
    assert f"form: {true}" in found.fix and "times less" in found.message


@pytest.mark.parametrize("form", ["euler_xyz", "quat_xyzw", "matrix"])
def test_inverted_rotations(raws, form):
    inverted = [
        column(r, "r", as_form(np.swapaxes(euler_to_matrix(r.columns["r"]), -1, -2), form))
        for r in raws
    ]
    mapping = replace(MAPPING, rotation=RotationColumns(("r",), form=form))
    for found in expect(inverted, *everywhere("rotation_convention"), mapping=mapping):
        assert "invert" in found.fix


def test_a_wrong_convention_of_one_episode_is_found_there(raws):
    raws[2] = column(raws[2], "r", as_form(euler_to_matrix(raws[2].columns["r"]), "euler_XYZ"))
    expect(raws, (2, None, "rotation_convention"))


def test_joints_of_something_else(raws):
    raws[1] = column(raws[1], "q", make_raw(99).columns["q"])
    expect(raws, (1, None, "kinematics_mismatch"))


def test_positions_of_something_else(raws):
    raws[1] = column(raws[1], "p", make_raw(99).columns["p"])
    (found,) = expect(raws, (1, None, "kinematics_mismatch"))
    assert "position" in found.message


def test_a_tool_and_a_base_that_are_offset_are_no_mismatch(raws):
    tool = euler_to_matrix(np.array([0.3, -0.2, 1.1]))
    offset = []
    for raw in raws:
        rotation = euler_to_matrix(raw.columns["r"])
        moved = raw.columns["p"] + rotation @ [0.01, 0.02, 0.08] + [0.1, 0.0, 0.05]
        offset.append(column(column(raw, "p", moved), "r", matrix_to_euler(rotation @ tool)))
    expect(offset)


def test_rotations_that_nothing_can_be_compared_with_are_said_to_be_unverified(raws):
    (found,) = expect(raws, UNVERIFIED, mapping=NO_JOINTS)
    assert found.severity == "info"
    expect(raws, UNVERIFIED, mapping=replace(MAPPING, robot="another"))
    expect(raws, mapping=replace(MAPPING, pose_from_joints="franka"))
    still = [changed(raw, "r", slice(None), raw.columns["r"][0]) for raw in raws]
    held = [changed(raw, "q", slice(None), raw.columns["q"][0]) for raw in still]
    assert UNVERIFIED in places(find(held))


@pytest.mark.parametrize("true", ["euler_XYZ", "euler_zyx", "euler_ZYX", "inverse"])
def test_rotation_composition(raws, true):
    mapping = replace(WITH_VELOCITY, joints=())
    raws = [with_velocity(raw) for raw in raws]
    expect(raws, mapping=mapping)
    form = "euler_xyz" if true == "inverse" else true
    for k, raw in enumerate(raws):
        rotation = euler_to_matrix(raw.columns["r"])
        rotation = np.swapaxes(rotation, -1, -2) if true == "inverse" else rotation
        raws[k] = column(raw, "r", as_form(rotation, form))
    (found,) = expect(raws, (None, None, "rotation_composition"), mapping=mapping)
    assert ("invert" in found.fix) == (true == "inverse") and form in found.fix


def test_absolute_commands_cannot_verify_rotations(raws):
    mapping = replace(NO_JOINTS, actions={"cartesian_position": ("c",)})
    aimed = [column(r, "c", np.c_[r.columns["p"], r.columns["r"]]) for r in raws]
    expect(aimed, UNVERIFIED, mapping=mapping)


# ----------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("lag", [5, 8])
def test_action_lag(raws, lag):
    late = []
    for raw in raws:
        moved = np.roll(with_velocity(raw).columns["v"], lag, axis=0)  # effect before the command
        late.append(column(raw, "v", np.roll(moved, -2 * lag, axis=0)))
    (found,) = expect(late, (None, None, "action_lag"), mapping=WITH_VELOCITY)
    assert f"{lag} steps later" in found.message


@pytest.mark.parametrize("lag", [1, 2])
def test_the_lag_of_a_controller_is_none(raws, lag):
    expect([with_velocity(raw, lag) for raw in raws], mapping=WITH_VELOCITY)


@pytest.mark.parametrize("name", ["cartesian_velocity", "action"])
def test_action_mismatch_of_one_axis(raws, name):
    mapping = replace(MAPPING, actions={name: ("v",)})
    flipped = [with_velocity(raw) for raw in raws]
    expect(flipped, mapping=mapping)
    flipped = [column(r, "v", r.columns["v"] * [1, -1, 1, 1, 1, 1]) for r in flipped]
    (found,) = expect(flipped, (None, None, "action_mismatch"), mapping=mapping)
    assert "along y" in found.message


def test_action_mismatch_of_scale(raws):
    mapping = replace(MAPPING, actions={"cartesian_position": ("c",)})
    aimed = [
        column(
            r, "c", np.concatenate([np.roll(r.columns["p"], -1, axis=0), r.columns["r"]], axis=1)
        )
        for r in raws
    ]
    for k, raw in enumerate(aimed):
        aimed[k] = changed(raw, "c", -1, raw.columns["c"][-2])
    expect(aimed, mapping=mapping)
    in_mm = [column(r, "p", r.columns["p"] * 1000) for r in aimed]
    in_mm = [column(r, "c", r.columns["c"] * [1e3, 1e3, 1e3, 1, 1, 1]) for r in in_mm]
    expect(in_mm, mapping=replace(mapping, position=PositionColumns(("p",), unit="mm")))
    scaled = [column(r, "c", r.columns["c"] * 1000) for r in aimed]
    (found,) = expect(scaled, (None, None, "action_mismatch"), mapping=mapping)
    assert "unit" in found.message


# -------------------------------------------------------------------------------------- the clock


@pytest.mark.parametrize("shift", [0.0, 0.03])
def test_time_not_increasing(raws, shift):
    raws[1] = changed(raws[1], "t", 9, raws[1].columns["t"][8] - shift)
    expect(raws, (1, 9, "time_not_increasing"))


@pytest.mark.parametrize(("factor", "unit"), [(1e3, "ms"), (1e9, "ns"), (1e6, "us")])
def test_time_unit(raws, factor, unit):
    raws[2] = column(raws[2], "t", raws[2].columns["t"] * factor)
    (found,) = expect(raws, (2, None, "time_unit"))
    assert found.fix == f"`time: {{key: t, unit: {unit}}}`"
    millis = replace(MAPPING, time=TimeColumns(("t",), unit="ms"))
    assert {f.code for f in find(raws[:1], millis)} == {"time_unit"}


@pytest.mark.parametrize("hz", [60.0, 16.0, 14.0])
def test_rate_mismatch(raws, hz):
    for found in expect(raws, *everywhere("rate_mismatch"), mapping=replace(MAPPING, hz=hz)):
        assert "`hz: 15`" in found.fix


def test_gaps(raws):
    raws[1] = rows(raws[1], np.r_[:10, 13:30])
    (found,) = expect(raws, (1, 10, "gaps"))
    assert "1 of 26 steps" in found.message


# ------------------------------------------------------------------------------------ the cameras


class BrokenFrames(LazyFrames):
    def __init__(self, frames: np.ndarray, readable: np.ndarray) -> None:
        super().__init__(frames.shape)  # type: ignore[arg-type]
        self.frames, self.readable = frames, readable

    def fetch(self, indices: np.ndarray) -> np.ndarray:
        if not self.readable[indices].all():
            raise FrameReadError("wrist.mp4: nothing there")
        return self.frames[indices]


@pytest.mark.parametrize(("count", "severity"), [(29, "warning"), (28, "warning"), (25, "error")])
def test_frame_count(raws, count, severity):
    raws[2] = camera(raws[2], "wrist", raws[2].cameras["wrist"][:count])
    (found,) = expect(raws, (2, None, "frame_count"))
    assert found.severity == severity and f"{count} frames" in found.message


def test_more_frames_than_rows(raws):
    frames = raws[2].cameras["wrist"]
    raws[2] = camera(raws[2], "wrist", np.concatenate([frames, frames[-5:]]))
    (found,) = expect(raws, (2, None, "frame_count"))
    assert found.severity == "error"


def test_camera_missing(raws):
    raws[3] = replace(raws[3], cameras={"exterior": raws[3].cameras["exterior"]})
    (found,) = expect(raws, (3, None, "camera_missing"))
    assert found.severity == "warning" and "'wrist'" in found.message


def test_all_cameras_missing_is_an_error(raws):
    raws[3] = replace(raws[3], cameras={})
    (found,) = expect(raws, (3, None, "camera_missing"))
    assert found.severity == "error"


def test_a_camera_that_no_episode_has_is_not_missing(raws):
    # A format's own mapping names all the cameras that such a recording may have.
    expect(raws, mapping=replace(MAPPING, cameras={**MAPPING.cameras, "top": CameraColumns("top")}))


@pytest.mark.parametrize(("black", "severity"), [(slice(4, 6), "warning"), (slice(None), "error")])
def test_camera_black(raws, black, severity):
    frames = raws[0].cameras["exterior"].copy()
    frames[black] = 2
    raws[0] = camera(raws[0], "exterior", frames)
    (found,) = expect(raws, (0, black.start or 0, "camera_black"))
    assert found.severity == severity


def test_camera_frozen(raws):
    frames = raws[0].cameras["exterior"].copy()
    frames[8:26] = frames[8]
    rng = np.random.default_rng(0)  # a codec's noise does not hide it
    noise = rng.integers(-2, 3, frames.shape)
    noisy = np.clip(frames.astype(int) + noise, 0, 255).astype(np.uint8)
    for kept in (frames, noisy):
        raws[0] = camera(raws[0], "exterior", kept)
        expect(raws, (0, 8, "camera_frozen"))


def test_a_picture_that_stands_still_with_the_arm_is_not_frozen(raws):
    raw = paused(raws[0], 10, 30)
    index = np.r_[:11, [10] * 30, 11:30]
    raws[0] = camera(raw, "exterior", raw.cameras["exterior"][index])
    expect(raws, (0, 10, "idle"))


def test_a_video_that_ends_early(raws):
    frames = BrokenFrames(raws[1].cameras["wrist"], np.arange(30) < 20)
    raws[1] = camera(raws[1], "wrist", frames)
    (found,) = expect(raws, (1, 20, "video_truncated"))
    assert "declares 30 frames but ends after 20" in found.message


@pytest.mark.parametrize("bad", [[5], list(range(30))])
def test_frames_that_cannot_be_read(raws, bad):
    frames = BrokenFrames(raws[1].cameras["wrist"], ~np.isin(np.arange(30), bad))
    raws[1] = camera(raws[1], "wrist", frames)
    expect(raws, (1, bad[0], "frames_unreadable"))


def test_stereo_pairs(raws):
    both = [
        camera(r, "wrist", np.concatenate([f := r.cameras["wrist"], np.roll(f, 2, axis=2)], axis=2))
        for r in raws
    ]
    expect(both, *everywhere("stereo_pair"))
    rng = np.random.default_rng(0)
    wide = [camera(r, "wrist", rng.integers(0, 256, (30, 24, 80, 3), np.uint8)) for r in raws]
    expect(wide)


def test_channels_swapped(raws):
    raws[2] = camera(raws[2], "wrist", raws[2].cameras["wrist"][..., ::-1])
    (found,) = expect(raws, (2, None, "channels_swapped"))
    assert "guess" in found.message and "wrist" in found.message
    swapped = [camera(r, "exterior", r.cameras["exterior"][..., ::-1]) for r in raws[:2]]
    (found,) = expect(swapped, (None, None, "channels_swapped"))
    assert found.severity == "info" and "exterior" in found.message


def test_a_camera_with_its_own_clock_may_have_any_number_of_frames(raws):
    times = [np.linspace(r.columns["t"][0], r.columns["t"][-1], 20) for r in raws]
    clocked = [
        camera(column(r, "ct", t), "wrist", r.cameras["wrist"][:20])
        for r, t in zip(raws, times, strict=True)
    ]
    cameras = {**MAPPING.cameras, "wrist": CameraColumns("wrist", TimeColumns(("ct",)))}
    mapping = replace(MAPPING, cameras=cameras, hz=9.83)  # rows become this camera's frames
    expect(clocked, mapping=mapping)
    clocked[1] = camera(clocked[1], "wrist", raws[1].cameras["wrist"][:18])
    (found,) = expect(clocked, (1, None, "frame_count"), mapping=mapping)
    assert found.severity == "error"  # Which frame is of which time is anybody's guess.


# ------------------------------------------------------------------------------ sets and reports


def test_several_faults_are_all_found(raws):
    raws[0] = changed(raws[0], "p", 12, raws[0].columns["p"][12] + [0.5, 0, 0])
    raws[0] = changed(raws[0], "t", 3, raws[0].columns["t"][2])
    raws[1] = column(raws[1], "g", 100 * raws[1].columns["g"])
    raws[1] = camera(raws[1], "wrist", 0 * raws[1].cameras["wrist"])
    assert {(f.episode, f.code) for f in find(raws)} == {
        (0, "outlier"),
        (0, "time_not_increasing"),
        (1, "gripper_range"),
        (1, "camera_black"),
    }


def test_every_kind_says_why_and_what_to_do():
    for code, kind in KINDS.items():
        assert kind.why.endswith(".") and kind.fix.endswith(".") and kind.title, code


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    writer = EpisodeStore(path, mode="a")
    for k in range(3):
        writer.write(k, to_episode(make_raw(k), MAPPING, source="memory"))
    return path


def test_a_report_of_files(store):
    (store / "episodes" / "00000001" / "proprio" / "zarr.json").unlink()
    report = check(open_source(store), progress=False)
    assert report.quarantined == [1]
    assert [(f.episode, f.code) for f in report.findings] == [
        (None, "rotation_unverified"),
        (1, "unreadable"),
    ]
    content = report.to_json()
    assert set(content) == {"format", "episodes", "steps", "cameras", "clock_hz", "findings"}
    assert content["cameras"] == ["exterior", "wrist"]
    assert (content["format"], content["episodes"], content["steps"]) == ("zarr_store", 3, 58)
    assert content["clock_hz"] == pytest.approx(15)
    for entry in content["findings"]:  # type: ignore[attr-defined]
        assert set(entry) == {"episode", "step", "code", "severity", "message"}


def test_some_episodes_can_be_chosen(store):
    report = check(open_source(store), ids=[2], progress=False)
    assert (report.episodes, report.steps) == (1, 29)


def test_two_processes_find_what_one_finds(store):
    (store / "episodes" / "00000001" / "proprio" / "zarr.json").unlink()
    source = open_source(store)
    assert check(source, progress=False, workers=2) == check(source, progress=False)


def test_what_cannot_be_checked_raises(store):
    source = open_source(store)
    with pytest.raises(ValueError, match="no episodes to check"):
        check(source, ids=[], progress=False)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        check(source, workers=0, progress=False)


def test_a_report_quarantines_errors_only():
    def of(episode: int | None, severity: str) -> Finding:
        return Finding(episode, None, "idle", severity, "", "", "")  # type: ignore[arg-type]

    found = (of(None, "error"), of(3, "error"), of(1, "error"), of(3, "error"), of(2, "warning"))
    report = CheckReport("", "", 4, 0, (), None, found)
    assert report.quarantined == [1, 3]
