"""Draws docs/images/variation.png and variation_levels.png: what each factor of variation does.

    python docs/make_variation.py

Needs OpenGL, as the ray renderer has no textures. Factors that are not seen in a picture (masses,
friction, latency, noise) are left out.
"""

import copy
from pathlib import Path

import cv2
import numpy as np

from worldmodel.envs import cameras, franka, varied
from worldmodel.envs.control import Arm
from worldmodel.envs.variation import FACTORS, Variation, draw, parse

OUT = Path(__file__).parent / "images"
SIZE, GAP, LABEL = 160, 4, 120  # [pixels]
INK = (55, 41, 31)  # BGR
UNSEEN = ("object_mass", "friction", "latency", "action_noise", "pose_noise")
MILD_SEEDS, STRONG_SEEDS = (1, 2), (1, 2, 3, 4)
PLACES = {"red": (0.42, -0.16), "green": (0.52, 0.02), "blue": (0.44, 0.2)}  # [m]


class Studio:
    """One arm, three objects, one camera."""

    def __init__(self, size: int):
        self._model = franka.build_model()
        self._plain = copy.copy(self._model)
        self._arm = Arm(self._model)
        self._renderer = cameras.make_renderer(self._model, size, size, backend="gl")

    def picture(self, variation: Variation, camera: str = "exterior") -> np.ndarray:
        """Return the scene, BGR uint8 (size, size, 3)."""
        varied.apply(variation, self._model, plain=self._plain)
        self._arm.reset()
        for name, (x, y) in PLACES.items():
            height = franka.object_half_height(self._model, name)
            self._arm.data.joint(name).qpos[:3] = x, y, height
        self._arm.settle(0.1)
        self._arm.nudge(variation.start_offset, variation.start_yaw)
        return self._renderer.render(self._arm.data, camera)[:, :, ::-1]

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


def main() -> None:
    """Draws both sheets."""
    studio = Studio(SIZE)
    rows = [_header()]
    for factor in FACTORS:
        if factor in UNSEEN:
            continue
        variations = [Variation()]
        for strength, seeds in (("mild", MILD_SEEDS), ("strong", STRONG_SEEDS)):
            spec = parse(f"{factor}:{strength}")
            variations += [draw(spec, np.random.default_rng(seed)) for seed in seeds]
        rows.append(_row(factor.replace("_", " "), [studio.picture(v) for v in variations]))
    studio.close()
    _save(np.concatenate(rows), "variation.png")

    studio = Studio(224)
    levels = [
        np.concatenate(
            [
                _framed(studio.picture(draw(parse(level), np.random.default_rng(seed)), camera))
                for seed, camera in (
                    (1, "exterior"),
                    (2, "exterior"),
                    (3, "exterior"),
                    (3, "wrist"),
                )
            ],
            axis=1,
        )
        for level in ("none", "mild", "strong")
    ]
    studio.close()
    _save(np.concatenate(levels), "variation_levels.png")


def _header() -> np.ndarray:
    names = ["plain"] + ["mild"] * len(MILD_SEEDS) + ["strong"] * len(STRONG_SEEDS)
    header = np.full((24, LABEL + len(names) * (SIZE + GAP), 3), 255, np.uint8)
    for i, name in enumerate(names):
        _write(header, name, x=LABEL + i * (SIZE + GAP) + 4, y=17)
    return header


def _row(name: str, pictures: list[np.ndarray]) -> np.ndarray:
    label = np.full((SIZE + GAP, LABEL, 3), 255, np.uint8)
    _write(label, name, x=4, y=SIZE // 2)
    return np.concatenate([label, *map(_framed, pictures)], axis=1)


def _framed(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def _write(image: np.ndarray, text: str, *, x: int, y: int) -> None:
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, INK, 1, cv2.LINE_AA)


def _save(image: np.ndarray, name: str) -> None:
    path = OUT / name
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise OSError(f"could not write {path}")


if __name__ == "__main__":
    main()
