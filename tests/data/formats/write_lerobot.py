"""Recordings as LeRobot sets, by the layout of LeRobot 0.4 (v3.0) and 0.3 (v2.1), no code of ours.

The columns are those of LeRobot's port of DROID. In v3.0 two episodes share each MP4.
"""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HZ = 15
EPISODES_PER_VIDEO = 2
CHUNKS_SIZE = 1000


def write(path: Path, truths: list) -> Path:
    """A set of v3.0: all rows in one file, a video for every two episodes of a camera."""
    folder = path / "set"
    tasks = tasks_of(truths)
    rows = [table(n, truth, first=first, tasks=tasks) for n, truth, first in numbered(truths)]
    save(pa.concat_tables(rows), folder / "data/chunk-000/file-000.parquet")
    episodes = []
    for number, truth, first in numbered(truths):
        length = len(truth.times)
        video, place = divmod(number, EPISODES_PER_VIDEO)
        before = truths[number - place : number]
        begin = sum(len(earlier.times) for earlier in before) / HZ
        episode = {
            "episode_index": number,
            "tasks": [truth.task],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "stats/action/min": [0.0] * 8,  # there are many like this in a real set
        }
        for camera in truth.frames:
            key = f"videos/observation.images.{camera}"
            episode |= {f"{key}/chunk_index": 0, f"{key}/file_index": video}
            episode |= {f"{key}/from_timestamp": begin, f"{key}/to_timestamp": begin + length / HZ}
        episodes.append(episode)
    save(pa.Table.from_pylist(episodes), folder / "meta/episodes/chunk-000/file-000.parquet")
    for camera in truths[0].frames:
        for first in range(0, len(truths), EPISODES_PER_VIDEO):
            together = truths[first : first + EPISODES_PER_VIDEO]
            name = f"chunk-000/file-{first // EPISODES_PER_VIDEO:03d}.mp4"
            frames = np.concatenate([truth.frames[camera] for truth in together])
            encode(folder / f"videos/observation.images.{camera}" / name, frames)
    index = {"__index_level_0__": list(tasks)}  # what pandas calls an index without a name
    save(pa.table({"task_index": list(tasks.values())} | index), folder / "meta/tasks.parquet")
    info = describe(truths, "v3.0") | {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def write_v21(path: Path, truths: list) -> Path:
    """A set of v2.1: a file of rows and a video of each camera for every episode."""
    folder = path / "set"
    tasks = tasks_of(truths)
    for number, truth, first in numbered(truths):
        name = f"episode_{number:06d}"
        rows = table(number, truth, first=first, tasks=tasks)
        save(rows, folder / f"data/chunk-000/{name}.parquet")
        for camera, frames in truth.frames.items():
            key = f"observation.images.{camera}"
            encode(folder / f"videos/chunk-000/{key}/{name}.mp4", frames)
    (folder / "meta").mkdir()
    episodes = [
        {"episode_index": number, "tasks": [truth.task], "length": len(truth.times)}
        for number, truth, _ in numbered(truths)
    ]
    lines(folder / "meta/episodes.jsonl", episodes)
    texts = [{"task_index": number, "task": task} for task, number in tasks.items()]
    lines(folder / "meta/tasks.jsonl", texts)
    info = describe(truths, "v2.1") | {
        "total_chunks": 1,
        "total_videos": len(truths) * len(truths[0].frames),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def numbered(truths: list) -> list[tuple]:
    """Number of each episode, the recording, and the number of its first row in the set."""
    ends = np.cumsum([len(truth.times) for truth in truths]).tolist()
    return list(zip(range(len(truths)), truths, [0, *ends[:-1]], strict=True))


def tasks_of(truths: list) -> dict[str, int]:
    return {task: n for n, task in enumerate(dict.fromkeys(truth.task for truth in truths))}


def table(number: int, truth, *, first: int, tasks: dict[str, int]) -> pa.Table:
    rows = len(truth.times)
    gripper = truth.gripper[:, None]
    state = np.concatenate([truth.joints, gripper], axis=1)
    vectors = {
        "observation.state": state,
        "observation.state.cartesian_position": np.concatenate(
            [truth.position, truth.euler], axis=1
        ),
        "observation.state.joint_position": truth.joints,
        "action": np.concatenate([state[1:], state[-1:]]),
    }
    columns = {
        key: pa.FixedSizeListArray.from_arrays(
            pa.array(values.astype(np.float32).ravel()), values.shape[1]
        )
        for key, values in vectors.items()
    }
    columns |= {
        "observation.state.gripper_position": pa.array(truth.gripper.astype(np.float32)),
        "is_episode_successful": pa.array([truth.success] * rows),
        "timestamp": pa.array((np.arange(rows) / HZ).astype(np.float32)),
        "frame_index": pa.array(np.arange(rows)),
        "episode_index": pa.array(np.full(rows, number)),
        "index": pa.array(np.arange(first, first + rows)),
        "task_index": pa.array(np.full(rows, tasks[truth.task])),
    }
    return pa.table(columns)


def describe(truths: list, version: str) -> dict:
    def vector(*names: str) -> dict:
        return {"dtype": "float32", "shape": [len(names)], "names": {"axes": list(names)}}

    def number(dtype: str) -> dict:
        return {"dtype": dtype, "shape": [1], "names": None}

    joints = [f"joint_{k}" for k in range(7)]
    pose = ("x", "y", "z", "roll", "pitch", "yaw")
    features = {
        "observation.state": vector(*joints, "gripper"),
        "observation.state.cartesian_position": vector(*pose),
        "observation.state.gripper_position": vector("gripper"),
        "observation.state.joint_position": vector(*joints),
        "action": vector(*joints, "gripper"),
        "is_episode_successful": number("bool"),
        "timestamp": number("float32"),
    }
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = number("int64")
    for camera, frames in truths[0].frames.items():
        features[f"observation.images.{camera}"] = {
            "dtype": "video",
            "shape": list(frames.shape[1:]),
            "names": ["height", "width", "channels"],
            "info": {"video.fps": HZ, "video.codec": "h264", "video.pix_fmt": "yuv420p"},
        }
    return {
        "codebase_version": version,
        "robot_type": "Franka",
        "total_episodes": len(truths),
        "total_frames": sum(len(truth.times) for truth in truths),
        "total_tasks": len(tasks_of(truths)),
        "chunks_size": CHUNKS_SIZE,
        "fps": HZ,
        "splits": {"train": f"0:{len(truths)}"},
        "features": features,
    }


def encode(file: Path, frames: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(HZ))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "g": "2"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def save(content: pa.Table, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, file, row_group_size=25)  # not at the borders of episodes


def lines(file: Path, records: list[dict]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
