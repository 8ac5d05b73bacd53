"""Recordings as a DROID RLDS set, by the published description of its parts and no code of ours.

features.json is the one that TensorFlow Datasets itself wrote for the golden set, with other image
sizes. Messages and framing are put together here, one value at a time.
"""

import json
import struct
from pathlib import Path

import cv2
import google_crc32c
import numpy as np

GOLDEN = Path(__file__).parent.parent / "golden" / "rlds" / "droid" / "1.0.0"


def write(path: Path, truths: list) -> Path:
    folder = path / "droid" / "1.0.1"
    folder.mkdir(parents=True)
    features = json.loads((GOLDEN / "features.json").read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    observation = steps["featuresDict"]["features"]["observation"]["featuresDict"]["features"]
    del observation["exterior_image_2_left"]  # a truth has two cameras
    height, width = truths[0].frames["wrist"].shape[1:3]
    for camera in ("exterior_image_1_left", "wrist_image_left"):
        size = [str(height), str(width), "3"]
        observation[camera]["image"]["shape"]["dimensions"] = size
    (folder / "features.json").write_text(json.dumps(features))

    # Two shards, the first with one episode more where the number is odd.
    half = -(-len(truths) // 2)
    shards = [truths[:half], truths[half:]]
    info = {
        "fileFormat": "tfrecord",
        "name": "r2d2_faceblur",  # the files of DROID are not named like the folder
        "version": "1.0.1",
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": "train",
                "numBytes": "0",
                "shardLengths": [str(len(shard)) for shard in shards],
            }
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for k, shard in enumerate(shards):
        with (folder / f"r2d2_faceblur-train.tfrecord-{k:05}-of-00002").open("wb") as stream:
            for truth in shard:
                stream.write(framed(example(record(truth))))
    return path / "droid"


def record(truth) -> dict[str, list]:
    """Every entry of DROID's records, as a flat list of bytes, float or int."""
    rows = len(truth.times)
    pose = np.concatenate([truth.position, truth.euler], axis=1)
    gripper = truth.gripper[:, None]

    def following(values):
        return np.concatenate([values[1:], values[-1:]])  # commanded: where it then went

    outcome = "success" if truth.success else "failure"
    folder = f"/nfs/LAB/{outcome}/2023-07-{truth.number % 28 + 1:02}/Fri_Jul__7_10:00:00_2023"
    floats = {
        "observation/cartesian_position": pose,
        "observation/gripper_position": gripper,
        "observation/joint_position": truth.joints,
        "action_dict/cartesian_position": following(pose),
        "action_dict/cartesian_velocity": following(pose) - pose,
        "action_dict/gripper_position": following(gripper),
        "action_dict/gripper_velocity": following(gripper) - gripper,
        "action_dict/joint_position": following(truth.joints),
        "action_dict/joint_velocity": following(truth.joints) - truth.joints,
        "action": np.concatenate([following(pose), following(gripper)], axis=1),
        "discount": np.ones(rows),
        "reward": np.zeros(rows),
    }
    entries: dict[str, list] = {f"steps/{k}": v.ravel().tolist() for k, v in floats.items()}
    for key, at in (("is_first", 0), ("is_last", rows - 1), ("is_terminal", rows - 1)):
        entries[f"steps/{key}"] = [int(k == at) for k in range(rows)]
    entries["steps/language_instruction"] = [truth.task.encode()] * rows
    entries["steps/language_instruction_2"] = [b""] * rows
    entries["steps/language_instruction_3"] = [b""] * rows
    for ours, theirs in (("wrist", "wrist_image_left"), ("exterior", "exterior_image_1_left")):
        entries[f"steps/observation/{theirs}"] = [jpeg(image) for image in truth.frames[ours]]
    entries["episode_metadata/recording_folderpath"] = [f"{folder}/recordings/MP4".encode()]
    entries["episode_metadata/file_path"] = [f"{folder}/trajectory.h5".encode()]
    return entries


def jpeg(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    return data.tobytes()


def example(entries: dict[str, list], *, packed: bool = True) -> bytes:
    """tf.Example: its map of features, in the order of the names' hashes or any other."""
    content = b""
    for name, values in entries.items():
        if isinstance(values[0], bytes):
            kind, body = 1, b"".join(message(1, value) for value in values)
        elif isinstance(values[0], float):
            kind, numbers = 2, [struct.pack("<f", value) for value in values]
            unpacked = b"".join(b"\x0d" + number for number in numbers)
            body = message(1, b"".join(numbers)) if packed else unpacked
        else:
            kind, numbers = 3, [varint(value) for value in values]
            unpacked = b"".join(b"\x08" + number for number in numbers)
            body = message(1, b"".join(numbers)) if packed else unpacked
        content += message(1, message(1, name.encode()) + message(2, message(kind, body)))
    return message(1, content)


def message(field: int, content: bytes) -> bytes:
    return varint(field * 8 + 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    value %= 2**64
    low = value % 128
    return bytes([low]) if value < 128 else bytes([low + 128]) + varint(value // 128)


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = (crc >> 15) + (crc % 2**15 << 17)
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)
