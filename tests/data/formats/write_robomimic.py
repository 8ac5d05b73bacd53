"""Recordings as robomimic writes those of robosuite: images and poses under obs, T of each."""

import json
from pathlib import Path

import h5py
import numpy as np

from worldmodel.data.rotations import to_quat_xyzw

HZ = 15.0


def write(path: Path, truths: list, *, env_name: str = "") -> Path:
    file = path / "image.hdf5"
    arguments = {
        "env_name": env_name,
        "type": 1,
        "env_kwargs": {"robots": ["Panda"], "control_freq": HZ, "camera_names": ["exterior"]},
    }
    with h5py.File(file, "w") as content:
        data = content.create_group("data")
        data.attrs["env_args"] = json.dumps(arguments, indent=4)
        data.attrs["total"] = sum(len(t.times) for t in truths)
        for truth in truths:
            demo = data.create_group(f"demo_{truth.number}")
            rows = len(truth.times)
            demo.attrs["num_samples"] = rows
            demo.attrs["model_file"] = "<mujoco/>" * 1000
            half = 0.04 * (1 - truth.gripper)  # each finger's way from the middle
            observations = {
                "robot0_eef_pos": truth.position,
                "robot0_eef_quat": to_quat_xyzw(truth.rotation),
                "robot0_gripper_qpos": np.stack([half, -half], axis=1),
                "robot0_joint_pos": truth.joints,
                "exterior_image": truth.frames["exterior"],
                "wrist_image": truth.frames["wrist"],
            }
            for key, values in observations.items():
                demo.create_dataset(f"obs/{key}", data=values)
                demo.create_dataset(f"next_obs/{key}", data=np.roll(values, -1, axis=0))
            change = np.diff(truth.position, axis=0, append=truth.position[-1:])
            demo["actions"] = np.concatenate([change / 0.05, np.zeros((rows, 4))], axis=1)
            demo["states"] = np.zeros((rows, 45))
            demo["rewards"] = np.zeros(rows)
            demo["dones"] = np.arange(rows) == rows - 1
        names = [f"demo_{t.number}" for t in truths]
        content["mask/train"] = np.array(names[1:], dtype="S")
        content["mask/valid"] = np.array(names[:1], dtype="S")
    return file
