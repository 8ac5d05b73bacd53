"""Makes logs as a lab might have them, to try mapping.yaml on.

    python examples/own_logs/make_example.py logs

Eight runs of a Franka arm, each a folder of its own:

    run_0/log.csv           time [ms], hand pose [mm, deg], gripper width [mm], joints [deg]
    run_0/front.mp4         a camera, with a clock of its own and a header that says 30 fps
    run_0/front_times.csv   when each of its frames was taken [ms]
"""

import sys
from pathlib import Path

import numpy as np

from worldmodel.data.video_frames import write_video
from worldmodel.franka_arm import hand_pose
from worldmodel.pose import matrix_to_euler

HOME = np.array([0.0, -0.6, 0.0, -2.2, 0.0, 1.7, 0.8])  # rad
LOG_HZ, CAMERA_HZ = 50.0, 15.0
SECONDS = 6.0
HEIGHT, WIDTH = 120, 160


def main() -> None:
    """Makes eight runs in the folder given."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "logs")
    for run in range(8):
        make_run(folder / f"run_{run}", np.random.default_rng(run))
    print(f"wrote {folder}")


def make_run(folder: Path, rng: np.random.Generator) -> None:
    """Makes the files of one run."""
    folder.mkdir(parents=True)
    start = 1.7e9 + rng.uniform(0, 1e6)  # s since 1970
    waves = rng.uniform(0.1, 0.3, 7), rng.uniform(0.1, 0.3, 7), rng.uniform(0, 6, 7)

    times = np.arange(0, SECONDS, 1 / LOG_HZ)
    joints = joints_at(times, *waves)
    position, rotation = hand_pose(joints)
    width = 0.08 * (0.5 + 0.5 * np.cos(2 * np.pi * times / SECONDS))
    # Angles about turning axes x, y, z: those of the inverse about fixed axes, negated.
    angles = -matrix_to_euler(np.swapaxes(rotation, -1, -2))
    names = ["t_ms", "x", "y", "z", "rx", "ry", "rz", "width_mm", *(f"q{k}" for k in range(1, 8))]
    columns = [
        1000 * (start + times)[:, None],
        1000 * position,
        np.degrees(angles),
        1000 * width[:, None],
        np.degrees(joints),
    ]
    save(folder / "log.csv", names, np.concatenate(columns, axis=1))

    # The camera starts later, stops earlier and does not tick evenly.
    taken = np.arange(0.1, SECONDS - 0.1, 1 / CAMERA_HZ)
    taken = taken + rng.uniform(-0.1, 0.1, len(taken)) / CAMERA_HZ
    hand = hand_pose(joints_at(taken, *waves))[0]
    write_video(folder / "front.mp4", np.stack([picture(p) for p in hand]), hz=30)
    save(folder / "front_times.csv", ["t_ms"], 1000 * (start + taken)[:, None])


def joints_at(times: np.ndarray, size: np.ndarray, hz: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Returns joint angles (n, 7) [rad] at times (n,) [s]."""
    return HOME + size * np.sin(2 * np.pi * hz * times[:, None] + phase)


def picture(hand: np.ndarray) -> np.ndarray:
    """Returns a table seen from above, with a red hand on it."""
    image = np.full((HEIGHT, WIDTH, 3), (170, 140, 105), np.uint8)
    row = int(HEIGHT * np.clip(1 - hand[0], 0.1, 0.9))
    column = int(WIDTH * np.clip(0.5 - hand[1], 0.1, 0.9))
    image[row - 5 : row + 5, column - 5 : column + 5] = (200, 60, 40)
    return image


def save(file: Path, names: list[str], rows: np.ndarray) -> None:
    """Writes rows of numbers as CSV."""
    np.savetxt(file, rows, fmt="%.6f", delimiter=",", header=",".join(names), comments="")


if __name__ == "__main__":
    main()
