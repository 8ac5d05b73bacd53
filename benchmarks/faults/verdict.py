"""What a row of the fault table says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .planner import SPEED
from .robot_side import ENVELOPE

BRAKE_M = SPEED * ENVELOPE.reaction_s + SPEED**2 / (2 * ENVELOPE.axis_deceleration)
"""How far the arm goes from `SPEED` to rest at most, as the envelope counts on it [m]."""
AT_REST = 2e-3  # [m/s]


@dataclass(frozen=True)
class Verdict:
    """What happened in one row.

    Attributes:
        happened: In words.
        checks: What had to hold, by a short name.
        reaction_s: From the fault until the arm followed no command any more.
        extra_m: Way of the tool from the fault to rest.
        shown: Whether the simulator can show it at all.
    """

    happened: str
    checks: Mapping[str, bool]
    reaction_s: float | None = None
    extra_m: float | None = None
    shown: bool = True


@dataclass(frozen=True)
class Row:
    """One fault, against one rig or several.

    Attributes:
        fault: What breaks.
        required: What must come of it.
        run: Makes it happen in a rig and judges.
        on: Names of rigs.
        options: Of the robot's side.
        armed: Whether the rig is connected and armed before `run`.
        recorded: Whether the flight recorder must have kept it.
    """

    fault: str
    required: str
    run: Callable[[Any], Verdict]
    on: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    armed: bool = True
    recorded: bool = False


def stopped(
    found: Mapping[str, Any], *, within_s: float, state: str = "hold", reason: str | None = None
) -> dict[str, bool]:
    """Returns the checks of an arm that had to come to rest.

    Args:
        found: The robot side's report since the fault.
        within_s: It must have stopped following commands by then; the brake comes on top.
        state: In which it must be.
        reason: That it must give; None is any.
    """
    reaction = found["reaction_s"]
    checks = {
        "at rest": found["speed"] < AT_REST,
        f"reaction within {1000 * within_s:.0f} ms": reaction is not None and reaction <= within_s,
        f"travel within {1000 * (SPEED * within_s + BRAKE_M):.0f} mm": (
            found["travel_m"] <= SPEED * within_s + BRAKE_M
        ),
        f"state {state}": found["state"] == state,
    }
    if reason is not None:
        given = [entry[2] for entry in found["states"]]
        checks[f"reason {reason}"] = reason in given
    return checks | inside(found)


def inside(found: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the checks of an arm that kept within its envelope."""
    return {
        "inside the box": found["outside_m"] <= 0.003,
        "not too fast": found["top_speed"] <= 1.1 * ENVELOPE.velocity,
    }


def went_on(found: Mapping[str, Any], *, share: float = 0.7) -> dict[str, bool]:
    """Returns the checks of an arm that had to go on: at least so much of its usual way."""
    usual = SPEED * found["elapsed_s"]
    return {"went on": found["way_m"] >= share * usual} | inside(found)
