"""What no episode shows alone: columns that never change, copies, and odd ones out."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from worldmodel.data.checks.facts import EpisodeFacts
from worldmodel.data.checks.findings import Finding, finding
from worldmodel.data.mapping import ColumnMapping

AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
CONSTANT = 1e-6  # m, rad; sensors of a moving arm never read so steadily
SOME = 3  # episodes from which on a habit can be told from chance
MOSTLY_IDLE = 0.5  # of all steps
# Red minus blue, in grey levels: scenes differ in brightness, but one whose difference is that of
# the others with the other sign is odd.
TINTED = 10.0  # less is grey, which looks the same when exchanged
FAR_BETTER, UNUSUAL = 4.0, 5.0  # times nearer when exchanged; times as far off as is usual


def find_constant(facts: Sequence[EpisodeFacts], mapping: ColumnMapping) -> list[Finding]:
    """Finds axes that have one value in the whole set."""
    low = np.min([fact.low for fact in facts], axis=0)
    high = np.max([fact.high for fact in facts], axis=0)
    constant = [axis for axis, span in zip(AXES, high - low, strict=True) if span < CONSTANT]
    found = []
    for axis in constant:
        if axis == "gripper" and not mapping.gripper.key:
            continue
        found.append(
            finding(
                "constant_column",
                f"{axis} is {low[AXES.index(axis)]:.4g} in all {len(facts)} episodes",
                # Hands that never tilt or grip are common; hands that stay at one height are not.
                severity="warning" if axis in "xyz" else "info",
            )
        )
    return found


def find_duplicates(facts: Sequence[EpisodeFacts]) -> list[Finding]:
    """Finds episodes whose poses are those of an earlier one, to the last bit."""
    first: dict[str, int] = {}
    found = []
    for fact in facts:
        original = first.setdefault(fact.content, fact.episode)
        if original != fact.episode:
            message = f"has exactly the poses of episode {original}"
            found.append(finding("duplicate_episode", message, episode=fact.episode))
    return found


def find_missing_cameras(facts: Sequence[EpisodeFacts]) -> list[Finding]:
    """Finds episodes that lack a camera which others have."""
    every = dict.fromkeys(camera for fact in facts for camera in fact.cameras)
    return [
        finding(
            "camera_missing",
            f"there is no camera '{camera}', which "
            f"{sum(camera in other.cameras for other in facts)} of {len(facts)} episodes have",
            episode=fact.episode,
        )
        for fact in facts
        for camera in every
        if camera not in fact.cameras
    ]


def find_colours(facts: Sequence[EpisodeFacts]) -> list[Finding]:
    """Finds episodes whose colours are those of the others with red and blue exchanged."""
    tints: dict[str, dict[int, float]] = defaultdict(dict)
    for fact in facts:
        for camera, colour in fact.cameras.items():
            if colour:
                tints[camera][fact.episode] = colour[0] - colour[2]
    typical = {camera: float(np.median([*of.values()])) for camera, of in tints.items()}
    found = []
    for camera, of_camera in tints.items():
        usual = np.median([abs(tint - typical[camera]) for tint in of_camera.values()])
        for episode, tint in of_camera.items():
            unusual = abs(tint - typical[camera]) > UNUSUAL * usual
            if len(of_camera) >= SOME and unusual and _exchanged(tint, typical[camera]):
                message = (
                    f"camera '{camera}': red less blue is {tint:.0f} grey levels, and "
                    f"{typical[camera]:.0f} in the other episodes (a guess)"
                )
                found.append(finding("channels_swapped", message, episode=episode))
    return found + _find_odd_camera(typical)


def find_idle_set(facts: Sequence[EpisodeFacts]) -> list[Finding]:
    """Finds a set in which the arm stands still most of the time."""
    idle, usable = sum(f.idle_steps for f in facts), sum(f.usable_steps for f in facts)
    if len(facts) < SOME or not usable or idle <= MOSTLY_IDLE * usable:
        return []
    message = f"the arm stands still in {100 * idle / usable:.0f} % of all {usable} usable steps"
    return [finding("idle", message, severity="warning")]


def _find_odd_camera(typical: dict[str, float]) -> list[Finding]:
    """Finds a camera with red and blue exchanged: the others see the same room."""
    found = []
    for camera, tint in typical.items():
        others = [other for name, other in typical.items() if name != camera]
        # Rooms are lit warm: of two cameras, it is the blue one that is odd.
        if others and tint < 0 and _exchanged(tint, float(np.median(others))):
            message = (
                f"camera '{camera}': red less blue is {tint:.0f} grey levels, and "
                f"{np.median(others):.0f} in the other cameras (a guess)"
            )
            found.append(finding("channels_swapped", message, severity="info"))
    return found


def _exchanged(tint: float, other: float) -> bool:
    tinted = min(abs(tint), abs(other)) > TINTED
    return tinted and abs(tint - other) > FAR_BETTER * abs(-tint - other)
