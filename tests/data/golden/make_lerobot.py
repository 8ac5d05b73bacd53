"""Makes the LeRobot sets of this folder with LeRobot's own writer, from known recordings.

    pip install lerobot==0.4.4            # in an environment of its own; writes v3.0
    PYTHONPATH=. python tests/data/golden/make_lerobot.py v30 v30_images
    pip install lerobot==0.3.3            # in another; writes v2.1
    PYTHONPATH=. python tests/data/golden/make_lerobot.py v21

The sets have the features of LeRobot's port of DROID that say where the arm is, and its default
video codec, AV1.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROWS, HEIGHT, WIDTH, HZ = 20, 64, 96, 15
EPISODES = {"v30": 3, "v21": 3, "v30_images": 2}

spec = importlib.util.spec_from_file_location("truth", HERE.parent / "formats" / "truth.py")
truth = importlib.util.module_from_spec(spec)
sys.modules["truth"] = truth
spec.loader.exec_module(truth)

JOINTS = [f"joint_{k}" for k in range(7)]
POSE = ["x", "y", "z", "roll", "pitch", "yaw"]


def vector(names: list[str]) -> dict:
    return {"dtype": "float32", "shape": (len(names),), "names": {"axes": names}}


def make(name: str) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    cameras = {"exterior": "exterior_1_left", "wrist": "wrist_left"}
    features = {
        "observation.state": vector([*JOINTS, "gripper"]),
        "observation.state.cartesian_position": vector(POSE),
        "observation.state.gripper_position": vector(["gripper"]),
        "observation.state.joint_position": vector(JOINTS),
        "action": vector([*JOINTS, "gripper"]),
        "is_episode_successful": {"dtype": "bool", "shape": (1,), "names": None},
        "building": {"dtype": "string", "shape": (1,), "names": None},
    }
    if name == "v30_images":  # the small one
        del cameras["wrist"], features["action"], features["observation.state"]
        del features["building"], features["is_episode_successful"]
    for key in cameras.values():
        features[f"observation.images.{key}"] = {
            "dtype": "image" if name == "v30_images" else "video",
            "shape": (HEIGHT, WIDTH, 3),
            "names": ["height", "width", "channels"],
        }
    folder = HERE / "lerobot" / name
    shutil.rmtree(folder, ignore_errors=True)
    dataset = LeRobotDataset.create(
        repo_id=f"golden/{name}",
        root=folder,
        fps=HZ,
        robot_type="Franka",
        features=features,
        use_videos=name != "v30_images",
    )
    for number in range(EPISODES[name]):
        recording = truth.make_truth(number, rows=ROWS, height=HEIGHT, width=WIDTH, hz=HZ)
        pose = np.concatenate([recording.position, recording.euler], axis=1).astype(np.float32)
        joints = recording.joints.astype(np.float32)
        gripper = recording.gripper[:, None].astype(np.float32)
        commanded = np.concatenate([joints[1:], joints[-1:]])
        for k in range(ROWS):
            frame = {
                "observation.state": np.concatenate([joints[k], gripper[k]]),
                "observation.state.cartesian_position": pose[k],
                "observation.state.gripper_position": gripper[k],
                "observation.state.joint_position": joints[k],
                "action": np.concatenate([commanded[k], gripper[k]]),
                "is_episode_successful": np.array([recording.success]),
                "building": f"building {number}",
                "task": recording.task,
            }
            for camera, key in cameras.items():
                frame[f"observation.images.{key}"] = recording.frames[camera][k]
            if name == "v21":
                dataset.add_frame({key: frame[key] for key in features}, task=recording.task)
            else:
                dataset.add_frame({key: frame[key] for key in (*features, "task")})
        dataset.save_episode()
    if name != "v21":
        dataset.finalize()
    shutil.rmtree(folder / "images", ignore_errors=True)


for chosen in sys.argv[1:]:
    make(chosen)
