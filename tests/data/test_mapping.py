from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data.episode import find_problems
from worldmodel.data.mapping import (
    MAX_GAP_S,
    ColumnMapping,
    RawEpisode,
    check_fits,
    column,
    mapping_from,
    read_mapping,
    template,
    to_episode,
)
from worldmodel.data.rotations import (
    EULER_FORMS,
    angle_between,
    to_matrix,
    to_quat_xyzw,
    to_rotvec,
)
from worldmodel.franka_arm import PANDA_JOINT_HIGH, PANDA_JOINT_LOW, hand_pose
from worldmodel.pose import GRIPPER, POSITION, ROTATION, euler_to_matrix, matrix_to_euler

ROWS = 12
RNG = np.random.default_rng(0)
POSITIONS = RNG.uniform(-0.5, 0.5, (ROWS, 3))
MATRICES = to_matrix(RNG.uniform(-2, 2, (ROWS, 3)), "rotvec")
CLOSED = np.linspace(0, 1, ROWS)

YAML = """
hz: 15
position: {key: [x, y, z], unit: mm}
rotation: {key: [rx, ry, rz], form: euler_xyz, unit: deg}
gripper: {key: width, open: 80, closed: 0}
cameras: {exterior: front}
"""


def pictures(rows: int) -> np.ndarray:
    """Frame k is all k."""
    return np.broadcast_to(np.arange(rows, dtype=np.uint8)[:, None, None, None], (rows, 4, 4, 3))


def raw_episode(**columns: np.ndarray) -> RawEpisode:
    """What `YAML` describes, with other columns."""
    euler = np.degrees(matrix_to_euler(MATRICES))
    ours = {
        **{name: 1000 * POSITIONS[:, k] for k, name in enumerate("xyz")},
        **{f"r{name}": euler[:, k] for k, name in enumerate("xyz")},
        "width": 80 * (1 - CLOSED),
    }
    return RawEpisode("monday/3", {**ours, **columns}, {"front": pictures(ROWS)})


def simple(**changes: object) -> ColumnMapping:
    """The mapping of `YAML`, changed; a value of None leaves an entry out."""
    content = {**yaml.safe_load(YAML), **changes}
    return mapping_from({name: value for name, value in content.items() if value is not None})


def assert_poses(proprio: np.ndarray, positions=POSITIONS, matrices=MATRICES) -> None:
    np.testing.assert_allclose(proprio[:, POSITION], positions, atol=1e-6)
    found = euler_to_matrix(proprio[:, ROTATION].astype(np.float64))
    assert angle_between(found, matrices).max() < 1e-6


def test_ten_lines_of_yaml_make_an_episode(tmp_path):
    (tmp_path / "mapping.yaml").write_text(YAML)
    mapping = read_mapping(tmp_path / "mapping.yaml")
    raw = replace(raw_episode(), attributes={"task": "stack", "success": True})
    episode = to_episode(raw, mapping, source="hdf5")
    assert find_problems(episode) == []
    assert_poses(episode.proprio)
    np.testing.assert_allclose(episode.proprio[:, 6], CLOSED, atol=1e-6)
    np.testing.assert_allclose(episode.timestamps, np.arange(ROWS) / 15)
    np.testing.assert_array_equal(episode.frames["exterior"][:], pictures(ROWS))
    metadata = episode.metadata
    assert (metadata.source, metadata.name, metadata.task) == ("hdf5", "monday/3", "stack")
    assert metadata.success is True and metadata.clock == "declared"
    assert metadata.control_hz == 15 and metadata.cameras == ("exterior",)
    assert episode.joints is None and episode.usable is None and not episode.logged_actions


def test_the_golden_action():
    """States and action of the recording that comes with V-JEPA 2."""
    states = np.array(
        [
            [0.58043909, -0.00202123, 0.24755727, -3.06661558, 0.03052980, -1.91275120, 0.99697137],
            [0.67280847, 0.02896597, 0.33183685, -3.05143738, 0.01770951, -1.91249502, 0.99697137],
        ]
    )
    raw = RawEpisode("franka", {"state": states}, {"front": pictures(2)})
    mapping = simple(position="state[0:3]", rotation="state[3:6]", gripper="state[6]")
    episode = to_episode(raw, mapping, source="golden")
    expected = [0.09236938, 0.03098720, 0.08427958, -0.01716477, -0.00999905, -0.00002407, 0]
    np.testing.assert_allclose(episode.actions, [expected], atol=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("m", 1.0), ("cm", 100.0), ("mm", 1000.0)])
def test_units_of_length(unit, factor):
    raw = raw_episode(p=POSITIONS * factor)
    mapping = simple(position={"key": "p", "unit": unit})
    assert_poses(to_episode(raw, mapping, source="x").proprio)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_units_of_time(unit, factor):
    times = np.cumsum(RNG.uniform(0.05, 0.08, ROWS))
    stamps = (times * factor).round().astype(np.int64) if factor > 1 else times
    mapping = simple(time={"key": "t", "unit": unit}, hz=None)
    episode = to_episode(raw_episode(t=stamps), mapping, source="x")
    np.testing.assert_allclose(episode.timestamps, times, atol=1e-3)
    assert episode.metadata.clock == "measured"
    assert episode.metadata.control_hz == pytest.approx(1 / np.median(np.diff(times)), rel=0.02)


def written_as(form: str) -> np.ndarray:
    """The rotations in a form, by formulas of their own."""
    if form.startswith("euler_"):
        return RNG.uniform(-1, 1, (ROWS, 3))
    return {
        "rotvec": to_rotvec(MATRICES),
        "quat_xyzw": to_quat_xyzw(MATRICES),
        "quat_wxyz": to_quat_xyzw(MATRICES)[:, [3, 0, 1, 2]],
        "rot6d": np.concatenate([MATRICES[:, :, 0], MATRICES[:, :, 1]], axis=1),
        "rot6d_rows": MATRICES[:, :2].reshape(ROWS, 6),
        "matrix": MATRICES.reshape(ROWS, 9),
    }[form]


@pytest.mark.parametrize("unit", ["rad", "deg"])
@pytest.mark.parametrize(
    "form", [*EULER_FORMS, "rotvec", "quat_xyzw", "quat_wxyz", "rot6d", "rot6d_rows", "matrix"]
)
def test_forms_of_rotation(form, unit):
    values = written_as(form)
    angles = form.startswith("euler_") or form == "rotvec"
    logged = np.degrees(values) if angles and unit == "deg" else values
    mapping = simple(rotation={"key": "turn", "form": form, "unit": unit})
    episode = to_episode(raw_episode(turn=logged), mapping, source="x")
    assert_poses(episode.proprio, matrices=to_matrix(values, form))


@pytest.mark.parametrize(
    ("opened", "closed"), [(0.0, 1.0), (1.0, 0.0), (0.08, 0.0), (-1.0, 1.0), (0.0, 255.0)]
)
def test_grippers_that_count_in_any_direction(opened, closed):
    logged = opened + CLOSED * (closed - opened)
    mapping = simple(gripper={"key": "g", "open": opened, "closed": closed})
    episode = to_episode(raw_episode(g=logged), mapping, source="x")
    np.testing.assert_allclose(episode.proprio[:, 6], CLOSED, atol=1e-6)


def test_a_gripper_that_overshoots_is_clipped_but_one_in_other_units_is_not():
    slight = CLOSED.copy()
    slight[[0, -1]] = -0.04, 1.04
    mapping = simple(gripper="g")
    episode = to_episode(raw_episode(g=slight), mapping, source="x")
    assert episode.proprio[0, 6] == 0 and episode.proprio[-1, 6] == 1
    episode = to_episode(raw_episode(g=CLOSED * 80), mapping, source="x")
    assert any("gripper is" in problem for problem in find_problems(episode))


def test_a_hand_without_a_gripper_is_open():
    episode = to_episode(raw_episode(), simple(gripper={"key": []}), source="x")
    assert not episode.proprio[:, 6].any()


def test_poses_can_come_from_the_joints():
    joints = RNG.uniform(PANDA_JOINT_LOW, PANDA_JOINT_HIGH, (ROWS, 7))
    mapping = simple(
        position=None, rotation=None, joints="q", joints_unit="deg", pose_from_joints="franka"
    )
    episode = to_episode(raw_episode(q=np.degrees(joints)), mapping, source="x")
    position, matrix = hand_pose(joints)
    assert_poses(episode.proprio, position, matrix)
    np.testing.assert_allclose(episode.joints, joints, atol=1e-6)


def test_joints_actions_and_usable_rows_are_kept():
    held = np.arange(ROWS) % 3 == 0
    raw = raw_episode(
        q=np.ones((ROWS, 7)), a=np.arange(ROWS), b=np.zeros((ROWS, 2, 2)), held=held.astype(int)
    )
    mapping = simple(
        joints="q",
        actions={"target": ["a", "b"]},
        usable={"key": "held", "inverted": True},
        robot="ur5",
    )
    episode = to_episode(raw, mapping, source="x")
    np.testing.assert_array_equal(episode.joints, np.ones((ROWS, 7)))
    target = episode.logged_actions["target"]
    assert target.shape == (ROWS, 5) and target.dtype == np.float32
    np.testing.assert_array_equal(target[:, 0], np.arange(ROWS))
    np.testing.assert_array_equal(episode.usable, ~held)
    assert episode.metadata.robot == "ur5"


def test_keys_name_columns_entries_and_ranges():
    state = np.arange(ROWS * 8.0).reshape(ROWS, 8)
    columns = {"state": state, "t": state[:, 0], "odd[2]": state[:, 7], "image.state": state}
    raw = RawEpisode("r", columns, {})
    for keys, expected in (
        (("state",), state),
        (("t",), state[:, :1]),
        (("state[6]",), state[:, 6:7]),
        (("state[0:3]",), state[:, :3]),
        (("state[5:]",), state[:, 5:]),
        (("image.state[2:3]",), state[:, 2:3]),
        (("odd[2]",), state[:, 7:]),
        (("state[1]", "t", "state[3:5]"), state[:, [1, 0, 3, 4]]),
    ):
        np.testing.assert_array_equal(column(raw, keys), expected)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("stat", r"r has no column 'stat'; did you mean 'state'\? it has state \(12, 8\)"),
        ("stat[2]", "no column 'stat'; did you mean 'state'"),
        ("state[8]", r"'state\[8\]' of r reaches beyond the 8 numbers of a row"),
        ("state[-1]", "reaches beyond"),
        ("state[3:9]", "reaches beyond"),
        ("state[3:3]", "reaches beyond"),
    ],
)
def test_keys_that_are_not_there_are_named(key, message):
    raw = RawEpisode("r", {"state": np.zeros((ROWS, 8))}, {})
    with pytest.raises(ValueError, match=message):
        column(raw, (key,))


def test_columns_of_different_lengths_do_not_stand_side_by_side():
    raw = RawEpisode("r", {"a": np.zeros(3), "b": np.zeros(4)}, {})
    with pytest.raises(ValueError, match=r"\['a', 'b'\] of r have different lengths"):
        column(raw, ("a", "b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hz: 15\nposition: {kye: x}", "position has no 'kye'; did you mean 'key'"),
        ("hz: 15\npositon: {key: x}", "a mapping has no 'positon'; did you mean 'position'"),
        (YAML.replace("unit: mm", "unit: milimetre"), "unknown unit of position 'milimetre'"),
        (YAML.replace("unit: deg", "unit: degree"), "of rotation 'degree'; did you mean 'deg'"),
        (YAML.replace("euler_xyz", "euler_xzy "), None),
        (YAML.replace("euler_xyz", "euler-xyz"), "did you mean 'euler_xyz'"),
        (YAML.replace("open: 80", "open: 0"), "open and closed are the same"),
        (YAML.replace("open: 80", "open: 8e-2"), "gripper: open must be a number, got '8e-2'"),
        (YAML.replace("hz: 15", "hz: -15"), "hz must be positive, got -15"),
        (YAML.replace("hz: 15", "hz: fast"), "hz must be a number, got 'fast'"),
        (YAML.replace("[x, y, z]", "[1, 2, 3]"), "a key is a name or a list of names"),
        (YAML.replace("[x, y, z]", "[]"), "position needs a key"),
        (YAML.replace("key: [x, y, z], ", ""), "position needs a key"),
        (YAML.replace("{exterior: front}", "{my cam: front}"), "camera name 'my cam' must"),
        (YAML.replace("{exterior: front}", "{}"), "at least one camera"),
        (YAML.replace("{exterior: front}", "front"), "cameras must be names and values"),
        (YAML.replace("exterior: front", "exterior: {tiem: t}"), "has no 'tiem'; did you mean 't"),
        (YAML.replace("exterior: front", "exterior: {key: f, time: t}"), "rows need theirs"),
        (YAML.replace("gripper:", "#"), "needs gripper"),
        (YAML.replace("position:", "#"), "needs position and rotation, or joints"),
        (YAML + "pose_from_joints: franka", "which columns are the joint angles"),
        (YAML + "joints: q\npose_from_joints: ur5", "must be 'franka', got 'ur5'"),
        (YAML + "joints: q\njoints_unit: degrees", "unknown unit of joints 'degrees'"),
        (YAML + "time: {key: t, unit: hours}", "unknown unit of time 'hours'"),
        (YAML + "actions: {a.b: x}", "action name 'a.b' must consist of letters"),
        ("- 1\n- 2", "a mapping must be names and values"),
        ("", "a mapping must be names and values, got None"),
        ("a: [1", "is not YAML"),
    ],
)
def test_mistakes_in_a_yaml_are_named_with_the_file(tmp_path, text, message):
    file = tmp_path / "mapping.yaml"
    file.write_text(text)
    if message is None:
        assert read_mapping(file).rotation is not None
        return
    with pytest.raises(ValueError, match=message) as caught:
        read_mapping(file)
    assert str(file) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read_mapping(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({}, {"position": ["x", "y"]}, r"a position has 3 numbers, but \['x', 'y'\] of monday/3"),
        ({}, {"gripper": ["x", "y"]}, "a gripper has 1 numbers"),
        ({}, {"hz": None}, "has no times and nothing says its rate; say it with hz="),
        ({}, {"cameras": {"wrist": "hand"}}, "has no camera of hand; it has front"),
        (
            {"q": np.zeros((ROWS, 4))},
            {"rotation": {"key": "q", "form": "quat_xyzw"}},
            "monday/3: a",
        ),
        ({"t": np.arange(ROWS + 3.0)}, {"time": "t"}, "rows do not match: pose 12, time 15"),
        ({"p": np.zeros((ROWS - 1, 3))}, {"position": "p"}, "11 positions but 12 rotations"),
        ({"width": np.zeros(ROWS - 3)}, {}, "rows do not match: pose 12, time 12, gripper 9"),
    ],
)
def test_what_does_not_fit_a_recording_is_named(columns, changes, message):
    with pytest.raises(ValueError, match=message):
        to_episode(raw_episode(**columns), simple(**changes), source="x")


@settings(deadline=None, max_examples=50)
@given(
    cut=st.fixed_dictionaries(
        {name: st.integers(0, 3) for name in ("frames", "gripper", "time", "joints")}
    )
)
def test_two_rows_too_many_are_trimmed_and_not_three(cut):
    lengths = {name: ROWS - less for name, less in cut.items()}
    raw = raw_episode(
        width=80 * (1 - CLOSED[: lengths["gripper"]]),
        t=np.arange(lengths["time"]) * 0.1,
        q=np.zeros((lengths["joints"], 7)),
    )
    raw = replace(raw, cameras={"front": pictures(lengths["frames"])})
    mapping = simple(time="t", joints="q")
    if max(cut.values()) > 2:
        with pytest.raises(ValueError, match="rows do not match"):
            to_episode(raw, mapping, source="x")
        return
    episode = to_episode(raw, mapping, source="x")
    rows = min(lengths.values())
    assert find_problems(episode) == []
    assert len(episode.proprio) == len(episode.frames["exterior"]) == rows
    np.testing.assert_array_equal(episode.frames["exterior"][:][:, 0, 0, 0], np.arange(rows))


def test_a_camera_that_this_recording_lacks_is_left_out():
    mapping = simple(cameras={"wrist": "hand", "exterior": "front"})
    episode = to_episode(raw_episode(), mapping, source="x")
    assert episode.metadata.cameras == ("exterior",)


def test_a_recording_with_a_stopped_clock_can_still_be_looked_at():
    """Checking it must be possible, so reading it is."""
    raw = raw_episode(t=np.full(ROWS, 7.0))
    episode = to_episode(raw, simple(time="t", hz=None), source="x")
    assert any("timestamps do not increase" in p for p in find_problems(replace_hz(episode)))
    assert any("control_hz is 0" in p for p in find_problems(episode))


def replace_hz(episode):
    return replace(episode, metadata=replace(episode.metadata, control_hz=15.0))


def test_a_recording_without_rows_is_an_episode_with_a_problem():
    empty = {name: np.zeros(0) for name in (*"xyz", "rx", "ry", "rz", "width")}
    raw = RawEpisode("empty", empty, {"front": pictures(0)})
    problems = find_problems(to_episode(raw, simple(), source="x"))
    assert any("there are 0 observations" in problem for problem in problems)


# A hand whose state is logged at 100 Hz, and cameras that run at 30 Hz on clocks of their own.
STATE_TIMES = 50 + np.arange(300) * 0.01
FRONT_TIMES = 49.9837 + np.arange(95) / 30
HAND_TIMES = 50.1 + np.arange(80) / 30 + 0.011


def motion(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A straight line and a steady turn."""
    seconds = times - 50
    position = np.array([0.4, 0.0, 0.3]) + seconds[:, None] * [0.05, -0.1, 0.02]
    turn = to_matrix(seconds[:, None] * [0.3, 0.5, -0.4], "rotvec")
    return position, turn @ to_matrix(np.array([np.pi, 0, 0]), "rotvec")


def two_clocks() -> RawEpisode:
    position, matrix = motion(STATE_TIMES)
    seconds = STATE_TIMES - 50
    columns = {
        "p": position,
        "r": matrix.reshape(-1, 9),
        "g": (seconds > 1).astype(float),
        "q": np.outer(seconds, np.ones(7)),
        "u": seconds < 2,
        "t": STATE_TIMES,
        "t_front": (FRONT_TIMES * 1000),
        "t_hand": HAND_TIMES,
    }
    return RawEpisode("two", columns, {"front": pictures(95), "hand": pictures(80)})


TWO_CLOCKS = {
    "position": "p",
    "rotation": {"key": "r", "form": "matrix"},
    "gripper": "g",
    "time": "t",
    "joints": "q",
    "usable": "u",
    "actions": {"held": "g"},
    "cameras": {
        "exterior": {"key": "front", "time": {"key": "t_front", "unit": "ms"}},
        "wrist": {"key": "hand", "time": "t_hand"},
    },
}


def test_poses_are_interpolated_to_the_times_of_the_first_camera():
    episode = to_episode(two_clocks(), mapping_from(TWO_CLOCKS), source="x")
    assert find_problems(episode) == []
    at = episode.timestamps
    inside = (FRONT_TIMES >= HAND_TIMES[0]) & (FRONT_TIMES <= min(HAND_TIMES[-1], STATE_TIMES[-1]))
    np.testing.assert_allclose(at, FRONT_TIMES[inside], atol=1e-9)
    assert_poses(episode.proprio, *motion(at))
    before = [np.flatnonzero(t >= STATE_TIMES)[-1] for t in at]
    expected = (STATE_TIMES[before] - 50 > 1).astype(float)
    np.testing.assert_array_equal(episode.proprio[:, GRIPPER][:, 0], expected)
    np.testing.assert_array_equal(episode.logged_actions["held"][:, 0], expected)
    np.testing.assert_array_equal(episode.usable, STATE_TIMES[before] - 50 < 2)
    np.testing.assert_allclose(episode.joints, np.outer(at - 50, np.ones(7)), atol=1e-6)
    # Each frame is the one of that camera nearest in time.
    shown = episode.frames["exterior"][:][:, 0, 0, 0]
    np.testing.assert_array_equal(shown, np.flatnonzero(inside))
    shown = episode.frames["wrist"][:][:, 0, 0, 0]
    assert np.abs(HAND_TIMES[shown] - at).max() <= 1 / 60 + 1e-9
    assert episode.metadata.clock == "measured"
    assert episode.metadata.control_hz == pytest.approx(30, rel=0.01)


def test_a_camera_without_a_clock_goes_with_the_rows():
    raw = replace(two_clocks(), cameras={"front": pictures(95), "hand": pictures(300)[:300]})
    content = {**TWO_CLOCKS, "cameras": {**TWO_CLOCKS["cameras"], "wrist": "hand"}}
    episode = to_episode(raw, mapping_from(content), source="x")
    rows = np.rint((episode.timestamps - 50) / 0.01).astype(int)
    shown = episode.frames["wrist"][:][:, 0, 0, 0].astype(int)
    difference = (shown - rows + 128) % 256 - 128  # pictures count modulo 256
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("column_with_gap", ["t", "t_hand"])
def test_rows_in_a_gap_of_any_clock_are_left_out(column_with_gap):
    raw = two_clocks()
    times = raw.columns[column_with_gap]
    gap = times > 51
    raw = replace(raw, columns={**raw.columns, column_with_gap: times + gap * (MAX_GAP_S + 0.1)})
    at = to_episode(raw, mapping_from(TWO_CLOCKS), source="x").timestamps
    assert not ((at > 51.02) & (at < 51 + MAX_GAP_S + 0.08)).any()
    assert (at < 51).any() and (at > 51.65).any()


def changed(name: str, change) -> RawEpisode:
    raw = two_clocks()
    return replace(raw, columns={**raw.columns, name: change(raw.columns[name])})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (changed("t", lambda t: t - 1.7e9), "do not overlap; are they of one clock"),
        (changed("t", lambda t: t[::-1]), "the clock of the rows goes from 52.99.* at row 1;"),
        (changed("t_hand", lambda t: np.roll(t, 1)), "the clock of wrist goes from"),
        (changed("t_hand", lambda t: t * np.nan), "the clock of wrist goes from nan to nan"),
        (changed("t_hand", lambda t: t[:70]), "camera wrist has 80 frames but its clock .* 70"),
        (changed("t_front", lambda t: t[:0]), "camera exterior has 95 frames but its clock .* 0"),
    ],
)
def test_clocks_that_cannot_be_brought_together_are_named(raw, message):
    with pytest.raises(ValueError, match=message):
        to_episode(raw, mapping_from(TWO_CLOCKS), source="x")


@pytest.mark.parametrize("frames", [78, 82])
def test_a_camera_clock_may_be_two_longer_or_shorter_than_its_video(frames):
    raw = two_clocks()
    raw = replace(raw, cameras={**raw.cameras, "hand": pictures(frames)})
    episode = to_episode(raw, mapping_from(TWO_CLOCKS), source="x")
    assert episode.frames["wrist"][:][:, 0, 0, 0].max() <= min(frames, 80) - 1


def test_a_mapping_fits_if_some_recording_has_what_it_names():
    mapping = simple(cameras={"exterior": "front", "wrist": "hand"})
    one = raw_episode()
    other = replace(one, cameras={"hand": pictures(ROWS)})
    check_fits([one, other], mapping)
    with pytest.raises(ValueError, match="monday/3 has no camera 'hand'; it has front"):
        check_fits([one, one], mapping)
    with pytest.raises(ValueError, match="no column 'widht'; did you mean 'width'"):
        check_fits([one], simple(gripper="widht"))


def test_the_template_is_a_mapping_once_its_columns_are_filled_in():
    columns = {name: np.zeros(ROWS) for name in ("t", "gripper", "wide: [1]")}
    raw = RawEpisode("log 1", columns, {"cam: a/b": pictures(ROWS), "hand": pictures(ROWS)})
    text = template(raw)
    assert "#   wide: [1]: float64 (12,)" in text and "(12, 4, 4, 3)" in text
    mapping = mapping_from(yaml.safe_load(text))
    assert [camera.key for camera in mapping.cameras.values()] == ["cam: a/b", "hand"]
    filled = replace(raw, columns={**raw_episode().columns, **columns})
    assert to_episode(filled, mapping, source="x").steps == ROWS - 1
    assert mapping_from(yaml.safe_load(template(RawEpisode("none", {}, {})))).cameras
