"""What a check says: where, what, why it matters and what to do; and the list of all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or suspicious, or could not be checked.

    Attributes:
        episode: Id of the episode; None for the set as a whole.
        step: First row of the episode that shows it; None where it is not about one row.
        code: Which kind of finding, a key of `KINDS`.
        severity: "error": the data is wrong, do not train on it. "warning": a part of it is, or it
            probably is. "info": good to know.
        message: What was found, in numbers.
        why: Why it matters.
        fix: What to do.
    """

    episode: int | None
    step: int | None
    code: str
    severity: Severity
    message: str
    why: str
    fix: str


@dataclass(frozen=True)
class Kind:
    """What all findings of one code have in common, where a check does not say otherwise."""

    severity: Severity
    title: str
    why: str
    fix: str


def finding(
    code: str,
    message: str,
    *,
    step: int | None = None,
    severity: Severity | None = None,
    fix: str = "",
    episode: int | None = None,
) -> Finding:
    """Returns a finding; severity and fix are those of its kind if not given."""
    kind = KINDS[code]
    return Finding(
        episode=episode,
        step=step,
        code=code,
        severity=severity or kind.severity,
        message=message,
        why=kind.why,
        fix=fix or kind.fix,
    )


_MAPPING = "Correct the mapping (`worldmodel inspect` shows the columns), then check again."
_LEAVE_OUT = "Leave the episode out, or repair its file."

KINDS: Mapping[str, Kind] = {
    # The numbers.
    "unreadable": Kind(
        "error",
        "Cannot be read",
        "An episode that cannot be read is lost; one that is skipped silently is lost unnoticed.",
        "Restore the file that the message names, correct the mapping, or leave the episode out.",
    ),
    "too_short": Kind(
        "warning",
        "Too short",
        "It gives no training window, so it only counts in the statistics.",
        "Leave the episode out.",
    ),
    "not_finite": Kind(
        "error",
        "NaN or infinite values",
        "One such number makes the loss NaN and, a step later, every weight.",
        "Find out what writes them; until then cut these rows or leave the episode out.",
    ),
    "constant_column": Kind(
        "warning",
        "A column never changes",
        "A number that never changes teaches nothing, and its normalised value is noise or NaN.",
        "See that the mapping names the right column; if the arm never moves so, ignore this.",
    ),
    "position_unit": Kind(
        "error",
        "Positions in another unit",
        "The model learns in metres: a factor of 10 or 1000 makes every action meaningless.",
        _MAPPING,
    ),
    "angles_in_degrees": Kind(
        "error",
        "Degrees taken for radians",
        "Degrees read as radians are random rotations.",
        "Set `unit: deg` for the rotation, or `joints_unit: deg`, in the mapping.",
    ),
    "angles_in_radians": Kind(
        "error",
        "Radians taken for degrees",
        "Radians read as degrees make the hand seem not to turn at all.",
        "Set `unit: rad` for the rotation, or `joints_unit: rad`, in the mapping.",
    ),
    "gripper_range": Kind(
        "error",
        "Gripper beyond open and closed",
        "The gripper is 0 (open) to 1 (closed) everywhere; another scale outweighs all else.",
        "Say in the mapping which value is open and which is closed: "
        "`gripper: {key: ..., open: ..., closed: ...}`.",
    ),
    "gripper_inverted": Kind(
        "error",
        "Gripper the wrong way round",
        "A model that learns to open where it should close drops everything it picks up.",
        "Exchange `open` and `closed` of the gripper in the mapping.",
    ),
    "joint_limits": Kind(
        "warning",
        "Joints beyond the robot's limits",
        "This robot cannot stand so: the joints are of another one, or some values are broken.",
        "See that the mapping names the measured joints and the right `robot`.",
    ),
    "outlier": Kind(
        "warning",
        "The hand jumps",
        "A jump that no arm can make is a broken measurement, and becomes an action to learn.",
        "Leave the episode out, or mark these rows in the `usable` column.",
    ),
    "idle": Kind(
        "info",
        "The arm stands still",
        "A model of steps without motion learns that actions do nothing.",
        "Name the log's own flag under `usable` in the mapping, or cut the pauses.",
    ),
    "duplicate_episode": Kind(
        "warning",
        "The same episode twice",
        "A copy on the other side of the split makes validation measure memory.",
        "Leave all but one out.",
    ),
    # Rotations against joints and commands.
    "rotation_convention": Kind(
        "error",
        "Rotations in another convention",
        "Angles taken in the wrong order, or turned the wrong way, give plausible numbers and "
        "wrong rotations.",
        _MAPPING,
    ),
    "rotation_composition": Kind(
        "error",
        "Commanded turns do not fit the rotations",
        "The logged commands turn the hand otherwise than the rotations say: they are read in the "
        "wrong convention.",
        _MAPPING,
    ),
    "rotation_unverified": Kind(
        "info",
        "Rotations could not be verified",
        "Without joints or commanded turns to compare, a wrong Euler order looks like any motion.",
        "Name the logged joint angles under `joints` in the mapping, if there are any.",
    ),
    "kinematics_mismatch": Kind(
        "warning",
        "Joints and pose contradict each other",
        "One of the two is not this robot's, or not of the same moment; which one, nobody knows.",
        "See that `joints` and `robot` in the mapping are right, and that the pose is in the "
        "robot's base frame.",
    ),
    # Commands against what followed.
    "action_lag": Kind(
        "warning",
        "Commands take effect late",
        "A command paired with the wrong motion teaches the wrong effect.",
        "Train on measured motion, as is done by default; shift the logged commands before use.",
    ),
    "action_mismatch": Kind(
        "warning",
        "Commands contradict the motion",
        "An axis that moves against its command has a sign, a frame or a unit wrong.",
        "See which frame and unit the commands have; training uses measured motion by default.",
    ),
    # The clock.
    "time_not_increasing": Kind(
        "error",
        "Time stands still or runs backwards",
        "Windows are cut by time, and a rate is a change over time: both need time to go on.",
        "Use the capture time of a monotonic clock, not the time of writing; drop repeated rows.",
    ),
    "time_unit": Kind(
        "error",
        "Times in another unit",
        "No window of a second is found in a log whose seconds are milliseconds.",
        _MAPPING,
    ),
    "rate_mismatch": Kind(
        "error",
        "The declared rate is not the real one",
        "Velocities are wrong by this factor, and a model trained so plans at the wrong speed.",
        "Trust the timestamps: give the measured rate as `hz` in the mapping or on the command "
        "line.",
    ),
    "gaps": Kind(
        "warning",
        "Steps are missing",
        "A step across a gap is longer than the model believes.",
        "Nothing need be done: windows never span a gap. Many gaps mean an overloaded recorder.",
    ),
    # Cameras.
    "frame_count": Kind(
        "error",
        "Frames and rows differ in number",
        "If frames were lost in the middle, every later frame shows another moment than its row.",
        "Give the camera its own clock (`time:` under the camera), or leave the episode out.",
    ),
    "camera_missing": Kind(
        "warning",
        "A camera is missing",
        "Episodes without this camera cannot be used together with those that have it.",
        "Download or restore its file, or train from a camera that all episodes have.",
    ),
    "camera_black": Kind(
        "warning",
        "Black frames",
        "A black frame tells nothing; converters write them where frames were lost.",
        _LEAVE_OUT,
    ),
    "camera_frozen": Kind(
        "error",
        "The picture stands still while the arm moves",
        "The model sees that actions change nothing.",
        _LEAVE_OUT,
    ),
    "video_truncated": Kind(
        "error",
        "The video ends early",
        "The container still declares all frames; some readers repeat the last one silently.",
        "Copy the file again; until then leave the episode out.",
    ),
    "frames_unreadable": Kind(
        "error",
        "Frames cannot be decoded",
        "A frame that cannot be decoded is a hole in every window around it.",
        "Copy the file again, or write it anew with a codec that can be read here.",
    ),
    "stereo_pair": Kind(
        "error",
        "Two pictures side by side",
        "A stereo pair passed as one picture is squeezed to half its width.",
        "Cut the video to one eye, or name the recording of one eye in the mapping.",
    ),
    "channels_swapped": Kind(
        "warning",
        "Red and blue may be exchanged",
        "An encoder trained on RGB sees a world of wrong colours.",
        "Look at the contact sheet; if skin is blue, write the frames anew as RGB.",
    ),
}
