"""HDF5 of robomimic: demonstrations `data/demo_<i>`, mostly recorded in robosuite.

    data                       attributes total, env_args (JSON)
      demo_<i>                 attribute num_samples, the T actions
        actions (T, ...)  rewards  dones  states
        obs/<key> (T, ...)     observation t, before action t; images uint8 (T, height, width, 3)
        next_obs/<key>         observation after action t; may be missing
    mask/<split>               names of demonstrations

The last of `next_obs` is not read: some converters put a copy of the last observation there, as
nothing better was recorded, and a file does not say whether it is one. So an episode has the T
observations of `obs`, and its last action had no effect that was seen.

Of robosuite's observations the meaning is known: hand position [m], quaternion x y z w, and the two
fingers' joints [m], of which `obs.robot0_gripper_width`, their distance, is computed here. The rate
is in `env_args` as control_freq. Files of other environments need a mapping.

Source: the scripts and `dataset_states_to_obs.py` of robomimic 0.3.0.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worldmodel.data import source
from worldmodel.data.formats.folder import trailing_number
from worldmodel.data.formats.hdf5 import (
    Attributes,
    camera_of,
    datasets_of,
    group_at,
    is_column,
    looks_like_demos,
    opened,
    read_rows,
    root_names,
)
from worldmodel.data.frames import Frames
from worldmodel.data.mapping import (
    CameraColumns,
    ColumnMapping,
    GripperColumns,
    PositionColumns,
    RawEpisode,
    RotationColumns,
)

POSITION = "obs.robot0_eef_pos"
ROTATION = "obs.robot0_eef_quat"
FINGERS = "obs.robot0_gripper_qpos"
WIDTH = "obs.robot0_gripper_width"
JOINTS = "obs.robot0_joint_pos"
PANDA_WIDTH = 0.08  # m between the open fingers of robosuite's Panda gripper


class Reader(source.Reader):
    """Reads a robomimic file. Episode i is `demo_<i>`."""

    format = "robomimic"
    title = "robomimic HDF5"
    looked_for = "a .h5 or .hdf5 file with groups data/demo_0, data/demo_1, ..."

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with opened(path) as content:
            if not looks_like_demos(content):
                raise ValueError(f"{path} is not robomimic's; expected {self.looked_for}")
            data = group_at(content, "data", path)
            self._names: dict[int, str] = {}
            for name in map(str, data):
                number = trailing_number(name)[1]
                if number is None:
                    raise ValueError(f"{path}: expected groups data/demo_<i>, got data/{name}")
                self._names[number] = name
            self._env = _environment(data, path)
            masks = datasets_of(group_at(content, "mask", path)) if "mask" in content else ()
            self._splits = {split: set(dataset.asstr()[()]) for split, dataset in masks}
        self._ids = sorted(self._names)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `source.Reader.recognises`."""
        if "data" not in root_names(path):
            return False
        with opened(path) as content:
            return looks_like_demos(content)

    def ids(self) -> Sequence[int]:
        """See `source.Reader.ids`."""
        return self._ids

    def read(self, episode_id: int) -> RawEpisode:
        """See `source.Reader.read`; attribute "split" names the masks that have it."""
        if episode_id not in self._names:
            raise KeyError(
                f"no episode {episode_id} in {self.path}; it has {len(self._ids)}, "
                f"{self._ids[0]} to {self._ids[-1]}"
            )
        name = self._names[episode_id]
        columns: dict[str, np.ndarray] = {}
        cameras: dict[str, Frames] = {}
        with opened(self.path) as content:
            demo = group_at(content, f"data/{name}", self.path)
            for key, dataset in datasets_of(demo):
                if key.startswith("next_obs."):
                    continue
                camera = camera_of(dataset, self.path)
                if camera is not None:
                    cameras[key.removeprefix("obs.")] = camera
                elif is_column(dataset):
                    columns[key] = read_rows(dataset, self.path)
            declared = demo.attrs.get("num_samples")
        for key, values in [*columns.items(), *cameras.items()]:
            if declared is not None and len(values) != declared:
                raise ValueError(
                    f"{self.path}: '{key}' of {name} has {len(values)} rows; num_samples says "
                    f"{declared}"
                )
        fingers = columns.get(FINGERS)
        if fingers is not None and fingers.ndim == 2 and fingers.shape[1] == 2:
            # The joints of the two fingers open to opposite sides of zero.
            columns[WIDTH] = fingers[:, 0] - fingers[:, 1]
        attributes: Attributes = {"task": str(self._env.get("env_name", ""))}
        splits = sorted(split for split, names in self._splits.items() if name in names)
        if splits:
            attributes["split"] = ", ".join(splits)
        return RawEpisode(name, columns=columns, cameras=cameras, attributes=attributes)

    @property
    def mapping(self) -> ColumnMapping | None:
        """See `source.Reader.mapping`; known for one Panda arm of robosuite."""
        robots = self._env_kwargs().get("robots")
        if robots not in ("Panda", ["Panda"]):
            return None
        first = self.read(self._ids[0])
        if not {POSITION, ROTATION, WIDTH} <= set(first.columns) or not first.cameras:
            return None
        return ColumnMapping(
            position=PositionColumns((POSITION,)),
            rotation=RotationColumns((ROTATION,), form="quat_xyzw"),
            gripper=GripperColumns((WIDTH,), open=PANDA_WIDTH, closed=0.0),
            joints=(JOINTS,) if JOINTS in first.columns else (),
            actions={"actions": ("actions",)} if "actions" in first.columns else {},
            hz=self.declared_hz,
            cameras={key.removesuffix("_image"): CameraColumns(key) for key in first.cameras},
        )

    @property
    def declared_hz(self) -> float | None:
        """See `source.Reader.declared_hz`; control_freq of env_args."""
        rate = self._env_kwargs().get("control_freq")
        return float(rate) if rate is not None else None

    @property
    def notes(self) -> tuple[str, ...]:
        """See `source.Reader.notes`."""
        if "robots" not in self._env_kwargs():
            return ()
        return (
            "robosuite: positions are in the world frame, which differs from the robot base by a "
            "constant offset; rotations and changes are not affected",
        )

    def _env_kwargs(self) -> dict[str, Any]:
        kwargs = self._env.get("env_kwargs")
        return kwargs if isinstance(kwargs, dict) else {}


def _environment(data: h5py.Group, path: Path) -> dict[str, Any]:
    """Returns what env_args says, nothing if it is not there."""
    text = data.attrs.get("env_args", "{}")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: attribute env_args of data is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: attribute env_args of data must be an object, got {text!r}")
    return content
