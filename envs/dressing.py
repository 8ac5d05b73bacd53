"""Parts that the plain scene hides and variation shows: clutter, mats, walls, patterns.

None of them has a joint, so they cost the physics nothing. Clutter is solid but fixed, and stands
on the rim of the table where neither the gripper nor an object of a task comes (`RIM`). Mats lie
anywhere but are as thin as paper and touch nothing. Patterns are brightness only: a geom's own
colour tints them, and a geom changes its pattern by changing its material's number, so that an
OpenGL renderer that already holds the textures shows it.
"""

# pyright: reportAttributeAccessIssue=false
# mujoco's compiled names have no type stubs.

import mujoco
import numpy as np

CLUTTER = tuple(f"clutter{i}" for i in range(8))
MATS = tuple(f"mat{i}" for i in range(3))
WALLS = ("wall_back", "wall_left", "wall_right")
PLAIN = "plain"
PATTERNS = ("grain", "speckle", "weave", "checker", "stripes", "blotches", "gradient")
"""Names of the patterned materials."""
HIDDEN_POSITION = (0.0, 0.0, -3.0)  # [m] below the floor
MAT_HALF_THICKNESS, MAT_STEP = 0.0005, 0.0003  # [m]; the next mat lies higher by a step
_TEXELS = 256  # side of a texture; it covers `_TILE`
_TILE = 0.6  # [m]


def add_dressing(spec: mujoco.MjSpec) -> None:
    """Add the hidden parts to a scene; it looks and moves as before."""
    for name in PATTERNS:
        texture = spec.add_texture(
            name=name,
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            width=_TEXELS,
            height=_TEXELS,
            nchannel=3,
        )
        grey = np.round(255 * np.clip(pattern(name), 0, 1)).astype(np.uint8)
        texture.data = np.repeat(grey[:, :, None], 3, axis=2).tobytes()
        material = spec.add_material(
            name=name, texrepeat=[1 / _TILE, 1 / _TILE], texuniform=True, specular=0.0
        )
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    box = mujoco.mjtGeom.mjGEOM_BOX
    for name in CLUTTER + MATS:
        body = spec.worldbody.add_body(name=name, pos=list(HIDDEN_POSITION))
        touches = int(name in CLUTTER)
        body.add_geom(
            name=name,
            type=box,
            size=[0.02] * 3,
            rgba=[0, 0, 0, 0],
            contype=touches,
            conaffinity=touches,
        )
    for name, position, size in (
        ("wall_back", [-1.3, 0, 0.75], [0.02, 4, 1.5]),
        ("wall_left", [0, 1.9, 0.75], [4, 0.02, 1.5]),
        ("wall_right", [0, -1.9, 0.75], [4, 0.02, 1.5]),
    ):
        spec.worldbody.add_geom(
            name=name,
            type=box,
            pos=position,
            size=size,
            rgba=[0, 0, 0, 0],
            contype=0,
            conaffinity=0,
        )


def pattern(name: str) -> np.ndarray:
    """Return the brightness (256, 256), 0 to 1, of a pattern; its edges meet where it repeats.

    Raises:
        ValueError: For an unknown name.
    """
    y, x = np.mgrid[:_TEXELS, :_TEXELS] / _TEXELS
    rng = np.random.default_rng(0)
    if name == "grain":
        rings = 9 * y + 0.5 * np.sin(2 * np.pi * x) + 1.2 * _smooth_noise(rng, across=4, along=2)
        return 0.86 + 0.10 * np.sin(2 * np.pi * rings) * (0.4 + 0.6 * np.sin(2 * np.pi * y) ** 2)
    if name == "speckle":
        return 0.9 + 0.09 * _smooth_noise(rng, across=40, along=40)
    if name == "weave":
        return 0.91 + 0.04 * (np.sin(64 * np.pi * x) + np.sin(64 * np.pi * y))
    if name == "checker":
        return np.where((np.floor(6 * x) + np.floor(6 * y)) % 2 == 0, 1.0, 0.45)
    if name == "stripes":
        return np.where(np.floor(12 * x) % 2 == 0, 1.0, 0.5)
    if name == "blotches":
        return 0.75 + 0.45 * np.clip(_smooth_noise(rng, across=5, along=5), -0.55, 0.55)
    if name == "gradient":
        return 0.72 + 0.28 * np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y)
    raise ValueError(f"unknown pattern {name!r}; available: {', '.join(PATTERNS)}")


def _smooth_noise(rng: np.random.Generator, *, across: int, along: int) -> np.ndarray:
    """Return periodic noise (256, 256), std about 0.4, with so many waves down and along."""
    waves = np.fft.rfft2(rng.normal(size=(_TEXELS, _TEXELS)))
    down = np.fft.fftfreq(_TEXELS)[:, None] * _TEXELS / across
    right = np.fft.rfftfreq(_TEXELS)[None, :] * _TEXELS / along
    noise = np.fft.irfft2(waves * np.exp(-0.5 * (down**2 + right**2)), s=(_TEXELS, _TEXELS))
    return 0.4 * (noise - noise.mean()) / noise.std()
