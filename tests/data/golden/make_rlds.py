"""Writes the golden RLDS sets with TensorFlow Datasets' own builder: run where TensorFlow is.

    python -m venv tf
    tf/bin/pip install tensorflow-cpu tensorflow-datasets importlib_resources
    PYTHONPATH=. tf/bin/python tests/data/golden/make_rlds.py tests/data/golden/rlds

`droid` has DROID's feature specification with smaller images; `other` has two splits, and features
that DROID has not. What is in them follows from `truth.py` and from
the formulas below, which the tests repeat.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

ROWS = (6, 7, 8)
HEIGHT, WIDTH = 32, 48


def load_truth():
    file = Path(__file__).parent.parent / "formats" / "truth.py"
    spec = importlib.util.spec_from_file_location("truth", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["truth"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Droid(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "golden"}
    pkg_dir_path = None

    def _info(self):
        def image():
            return tfds.features.Image(
                shape=(HEIGHT, WIDTH, 3), dtype=np.uint8, encoding_format="jpeg"
            )

        def vector(size):
            return tfds.features.Tensor(shape=(size,), dtype=np.float64)

        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "steps": tfds.features.Dataset(
                        {
                            "observation": tfds.features.FeaturesDict(
                                {
                                    "gripper_position": vector(1),
                                    "cartesian_position": vector(6),
                                    "joint_position": vector(7),
                                    "wrist_image_left": image(),
                                    "exterior_image_1_left": image(),
                                    "exterior_image_2_left": image(),
                                }
                            ),
                            "action_dict": tfds.features.FeaturesDict(
                                {
                                    "gripper_position": vector(1),
                                    "gripper_velocity": vector(1),
                                    "cartesian_position": vector(6),
                                    "cartesian_velocity": vector(6),
                                    "joint_position": vector(7),
                                    "joint_velocity": vector(7),
                                }
                            ),
                            "action": vector(7),
                            "discount": tfds.features.Scalar(dtype=np.float32),
                            "reward": tfds.features.Scalar(dtype=np.float32),
                            "is_first": tfds.features.Scalar(dtype=np.bool_),
                            "is_last": tfds.features.Scalar(dtype=np.bool_),
                            "is_terminal": tfds.features.Scalar(dtype=np.bool_),
                            "language_instruction": tfds.features.Text(),
                            "language_instruction_2": tfds.features.Text(),
                            "language_instruction_3": tfds.features.Text(),
                        }
                    ),
                    "episode_metadata": tfds.features.FeaturesDict(
                        {
                            "recording_folderpath": tfds.features.Text(),
                            "file_path": tfds.features.Text(),
                        }
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        truth = load_truth()
        for number, rows in enumerate(ROWS):
            t = truth.make_truth(number, rows=rows, height=HEIGHT, width=WIDTH)
            folder = f"/raw/LAB/{'success' if t.success else 'failure'}/2023-07-0{number + 1}/run"
            yield (
                number,
                {
                    "steps": [self._step(t, k) for k in range(rows)],
                    "episode_metadata": {
                        "recording_folderpath": f"{folder}/recordings/MP4",
                        "file_path": f"{folder}/trajectory.h5",
                    },
                },
            )

    def _step(self, t, k):
        pose = np.concatenate([t.position[k], t.euler[k]])
        gripper = t.gripper[k : k + 1]
        last = k == len(t.times) - 1
        return {
            "observation": {
                "gripper_position": gripper,
                "cartesian_position": pose,
                "joint_position": t.joints[k],
                "wrist_image_left": t.frames["wrist"][k],
                "exterior_image_1_left": t.frames["exterior"][k],
                "exterior_image_2_left": t.frames["exterior"][k, :, ::-1],
            },
            "action_dict": {
                "gripper_position": gripper + 0.01,
                "gripper_velocity": gripper + 0.02,
                "cartesian_position": pose + 0.01,
                "cartesian_velocity": pose + 0.02,
                "joint_position": t.joints[k] + 0.01,
                "joint_velocity": t.joints[k] + 0.02,
            },
            "action": np.concatenate([pose + 0.01, gripper + 0.01]),
            "discount": 1.0,
            "reward": float(last and t.success),
            "is_first": k == 0,
            "is_last": last,
            "is_terminal": last,
            "language_instruction": "",
            "language_instruction_2": t.task,
            "language_instruction_3": f"{t.task} please",
        }


class Other(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("0.10.0")
    pkg_dir_path = None

    def _info(self):
        f = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=f.FeaturesDict(
                {
                    "steps": f.Dataset(
                        {
                            "observation": {
                                "state": f.Tensor(shape=(2, 3), dtype=np.float32),
                                "count": f.Scalar(dtype=np.int64),
                                "small": f.Tensor(shape=(2,), dtype=np.int8),
                                "huge": f.Scalar(dtype=np.uint64),
                                "phase": f.ClassLabel(names=["reach", "grasp", "lift"]),
                                "box": f.BBoxFeature(),
                                "view": f.Image(shape=(None, None, 3), encoding_format="png"),
                                "depth": f.Image(
                                    shape=(8, 8, 1), dtype=np.uint16, encoding_format="png"
                                ),
                                "points": f.Sequence(f.Tensor(shape=(3,), dtype=np.float32)),
                                "packed": f.Tensor(
                                    shape=(4,), dtype=np.float64, encoding=f.Encoding.ZLIB
                                ),
                            },
                            "note": f.Text(),
                            "is_first": f.Scalar(dtype=np.bool_),
                            "is_last": f.Scalar(dtype=np.bool_),
                        }
                    ),
                    "episode_metadata": {
                        "success": f.Scalar(dtype=np.bool_),
                        "weight": f.Scalar(dtype=np.float32),
                        "extrinsics": f.Tensor(shape=(6,), dtype=np.float64),
                    },
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "val": self._generate_examples(10)}

    def _generate_examples(self, first):
        for number in range(first, first + 2):
            rows = 3 + number % 2
            yield (
                number,
                {
                    "steps": [self._step(number, k, rows) for k in range(rows)],
                    "episode_metadata": {
                        "success": number % 2 == 0,
                        "weight": number / 2,
                        "extrinsics": np.arange(6.0),
                    },
                },
            )

    def _step(self, number, k, rows):
        return {
            "observation": {
                "state": np.arange(6, dtype=np.float32).reshape(2, 3) + 100 * number + k,
                "count": -k if number % 2 else k * 10**12,
                "small": np.array([-k, k], np.int8),
                "huge": np.uint64(2**64 - 1 - k),
                "phase": k % 3,
                "box": tfds.features.BBox(0.1, 0.2, 0.3, 0.4),
                "view": np.full((8, 10 + number, 3), (10 * k, number, 200), np.uint8),
                "depth": np.full((8, 8, 1), 1000 * k, np.uint16),
                "points": np.zeros((k, 3), np.float32),
                "packed": np.full(4, k / 3),
            },
            "note": "" if k == 0 else f"episode {number}",
            "is_first": k == 0,
            "is_last": k == rows - 1,
        }


def main(folder: Path) -> None:
    for builder_class in (Droid, Other):
        name = builder_class.__name__.lower()
        shutil.rmtree(folder / name, ignore_errors=True)
        builder = builder_class(data_dir=str(folder), file_format="tfrecord")
        builder.download_and_prepare()
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 200_000


if __name__ == "__main__":
    main(Path(sys.argv[1]))
