"""Recordings as DROID's recorder and its converter leave them on disk; no code of ours.

The episode's folder is named by the recorder's clock, HDF5 has a dataset for every leaf, and the
video is MPEG-4 part 2 under a header that says 60 fps.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import av
import h5py
import numpy as np

LAB = "TRI"
WRIST, EXT1, EXT2 = "18026681", "22008760", "24400334"
LEFT_Y, RIGHT_Y = 0.42, -0.38  # m: where the exterior cameras stand
RECEIVED_LATER = 41  # ms from capture to the arrival of a frame


def write(path: Path, truths: list) -> Path:
    """A lab's folder above; the second exterior video of each episode was not downloaded."""
    root = path / "droid_raw/1.0.1"
    for truth in truths:
        write_episode(root, truth)
    return root


def write_episode(
    root: Path,
    truth,
    *,
    version: str = "1.1",
    left: str = EXT1,
    right_frames: np.ndarray | None = None,
    stereo: tuple[str, ...] = (),
    with_metadata: bool = True,
) -> Path:
    """Writes one episode and returns its folder.

    Args:
        root: Folder of all labs.
        truth: The recording; "exterior" is what the left exterior camera saw.
        version: "1.0" lacks the operator's targets and the clutch's flag.
        left: Serial number of the exterior camera on the robot's left.
        right_frames: What the other exterior camera saw; no video of it if not given.
        stereo: Serial numbers of cameras of which only the stereo video is there.
        with_metadata: Whether the JSON is there.
    """
    start = datetime.fromtimestamp(truth.times[0], UTC)
    stamp = start.strftime("%a_%b_%e_%H:%M:%S_%Y").replace(" ", "_")
    outcome = "success" if truth.success else "failure"
    relative = f"{outcome}/{start:%Y-%m-%d}/{stamp}"
    folder = root / LAB / relative
    videos = folder / "recordings/MP4"
    videos.mkdir(parents=True)
    right = EXT2 if left == EXT1 else EXT1
    with h5py.File(folder / "trajectory.h5", "w") as content:
        write_rows(content, truth, version=version, left=left, right=right)
        content.attrs["time"] = stamp
        content.attrs["user"] = "Anna_Example"
        content.attrs["current_task"] = truth.task
        content.attrs["success"] = truth.success
        content.attrs["failure"] = not truth.success
        content.attrs["building"] = "Main"
        content.attrs["scene_id"] = 4711
        content.attrs["robot_serial_number"] = "panda-295341-1325480"
        content.attrs["version_number"] = version
    uuid = f"{LAB}+abcd1234+{start:%Y-%m-%d-%Hh-%Mm-%Ss}"
    metadata = {
        "uuid": uuid,
        "lab": LAB,
        "user": "Anna Example",
        "user_id": "abcd1234",
        "date": f"{start:%Y-%m-%d}",
        "timestamp": f"{start:%Y-%m-%d-%Hh-%Mm-%Ss}",
        "hdf5_path": f"{relative}/trajectory.h5",
        "building": "Main",
        "scene_id": 4711,
        "success": truth.success,
        "robot_serial": "panda-295341-1325480",
        "droid_version": version,
        "current_task": truth.task,
        "trajectory_length": len(truth.times),
        "left_mp4_path": f"{relative}/recordings/MP4/{left}.mp4",
        "right_mp4_path": f"{relative}/recordings/MP4/{right}.mp4",
    }
    y = {left: LEFT_Y, right: RIGHT_Y, WRIST: 0.0}
    for name, serial in (("wrist", WRIST), ("ext1", EXT1), ("ext2", EXT2)):
        metadata[f"{name}_cam_serial"] = serial
        metadata[f"{name}_cam_extrinsics"] = [0.3, y[serial], 0.4, -1.7, 0.0, -1.2]
        metadata[f"{name}_mp4_path"] = f"{relative}/recordings/MP4/{serial}.mp4"
        metadata[f"{name}_svo_path"] = f"{relative}/recordings/SVO/{serial}.svo"
    if with_metadata:
        (folder / f"metadata_{uuid}.json").write_text(json.dumps(metadata))
    seen = {WRIST: truth.frames["wrist"], left: truth.frames["exterior"]}
    if right_frames is not None:
        seen[right] = right_frames
    for serial, frames in seen.items():
        if serial in stereo:
            other_eye = np.full_like(frames, 90)
            encode(videos / f"{serial}-stereo.mp4", np.concatenate([frames, other_eye], axis=2))
        else:
            encode(videos / f"{serial}.mp4", frames)
    return folder


def write_rows(content: h5py.File, truth, *, version: str, left: str, right: str) -> None:
    rows = len(truth.times)
    pose = np.concatenate([truth.position, truth.euler], axis=1)
    at = np.round(truth.times * 1000).astype(np.int64)  # ms
    true, zeros = np.ones(rows, bool), np.zeros((rows, 7))
    state = {
        "cartesian_position": pose,
        "gripper_position": truth.gripper,
        "joint_positions": truth.joints,
        "joint_velocities": np.gradient(truth.joints, truth.times, axis=0),
        "joint_torques_computed": zeros,
        "motor_torques_measured": zeros,
        "prev_command_successful": true,
        "prev_controller_latency_ms": np.full(rows, 3.5),
    }
    # What was commanded is where the hand is a step later.
    ahead = np.minimum(np.arange(rows) + 1, rows - 1)
    largest = 0.125 if version == "1.0" else 0.075  # m per step
    velocity = np.zeros((rows, 6))
    velocity[:, :3] = (truth.position[ahead] - truth.position) / largest
    action = {
        "cartesian_position": pose[ahead],
        "cartesian_velocity": velocity,
        "joint_position": truth.joints[ahead],
        "joint_velocity": (truth.joints[ahead] - truth.joints) / 0.2,
        "gripper_position": truth.gripper[ahead],
        "gripper_velocity": (truth.gripper[ahead] - truth.gripper) / 0.25,
    }
    stamps = {
        "control/step_start": at - 4,
        "control/policy_start": at + 30,
        "control/sleep_start": at + 35,
        "control/control_start": at + 50,
        "control/step_end": at + 60,
        "robot_state/read_start": at,
        "robot_state/read_end": at + 2,
        "robot_state/robot_timestamp_seconds": at // 1000,
        "robot_state/robot_timestamp_nanos": at % 1000 * 1_000_000,
    }
    if version != "1.0":
        # The operator's targets begin with the first pose of the headset, two rows late here.
        action["target_cartesian_position"] = pose[ahead][2:]
        action["target_gripper_position"] = truth.gripper[ahead][2:]
        stamps["skip_action"] = np.arange(rows) < 3
    for serial in (WRIST, EXT1, EXT2):
        stamps[f"cameras/{serial}_read_start"] = at + 3
        stamps[f"cameras/{serial}_read_end"] = at + 20
        stamps[f"cameras/{serial}_frame_received"] = at + 20
        stamps[f"cameras/{serial}_estimated_capture"] = at + 20 - RECEIVED_LATER
    groups = {
        "observation/robot_state": state,
        "observation/timestamp": stamps,
        "observation/controller_info": {"movement_enabled": true, "controller_on": true},
        "action": action,
        "action/robot_state": state,
    }
    for group, values in groups.items():
        for name, value in values.items():
            content[f"{group}/{name}"] = value
    for serial, y in ((WRIST, 0.0), (left, LEFT_Y), (right, RIGHT_Y)):
        kind = 0 if serial == WRIST else 1
        content[f"observation/camera_type/{serial}"] = np.full(rows, kind, np.int64)
        for eye in ("left", "right"):
            extrinsics = np.tile([0.3, y, 0.4, -1.7, 0.0, -1.2], (rows, 1))
            content[f"observation/camera_extrinsics/{serial}_{eye}"] = extrinsics


def encode(file: Path, frames: np.ndarray) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=60)  # the camera's mode, not the cadence
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 12
        stream.bit_rate = 4_000_000
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
