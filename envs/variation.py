"""What may differ from one episode to the next, and by how much.

A choice is written as a level (``none``, ``mild``, ``strong``: every factor at that strength), as
one factor (``camera_pose``, strong unless told otherwise; ``camera_pose:mild``), or as several of
these joined by ``+``, where later ones overrule: ``mild+light:strong``,
``strong+arm_start:none``::

    spec = parse("mild+light:strong")
    variation = draw(spec, np.random.default_rng(seed))

Every factor draws from a stream of its own, so that adding one changes nothing in the others. At
the same seed a mild draw is the strong one scaled down. `worldmodel.envs.varied` puts a variation
into a model, and `worldmodel.envs.disturbance` into actions and measurements.
"""

import colorsys
import dataclasses
import difflib
import zlib
from collections.abc import Callable
from typing import overload

import numpy as np

from worldmodel.envs import dressing, franka

LEVELS = ("none", "mild", "strong")
COUNT = len(franka.CUBES)
_COPIES = len(franka.CAMERAS)

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Spec:
    """Which factors vary: pairs of name and strength, ``mild`` or ``strong``, in table order."""

    strengths: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return a text that `parse` reads as this choice."""
        return "+".join(f"{name}:{strength}" for name, strength in self.strengths) or "none"


@dataclasses.dataclass(frozen=True)
class Thing:
    """One piece of clutter or one mat; ``shape`` is box or cylinder."""

    shape: str
    x: float
    y: float
    yaw: float
    half_width: float
    half_height: float
    colour: Triple


@dataclasses.dataclass(frozen=True)
class CameraShift:
    """How a camera stands otherwise: three moves [m] and three turns [rad] in its own frame."""

    move: Triple = (0.0, 0.0, 0.0)
    turn: Triple = (0.0, 0.0, 0.0)
    fovy_change_deg: float = 0.0


@dataclasses.dataclass(frozen=True)
class Variation:
    """One episode's differences from the plain scene; the defaults are the plain scene.

    Tuples of objects are in the order of `franka.CUBES`, of cameras in that of `franka.CAMERAS`.

    Attributes:
        object_shapes: box or cylinder, of each object.
        object_tallness: Height over width.
        object_scales: Width, as a part of the plain cube's.
        object_hue_shift: Common to all objects, so that they stay apart [turns].
        object_saturations: Of each object, as a part of the plain colour's.
        object_brightnesses: The same for brightness.
        object_mass_ratios: Mass, as a part of the plain cube's; whatever the size.
        friction_ratio: Sliding friction of objects, table and finger pads, as a part of the plain.
        clutter: What stands on the rim of the table.
        mats: Sheets on the table.
        table_pattern: One of `dressing.PATTERNS` or plain.
        table_colour: None for the plain one.
        lamp_tilt: Turn of the lamp about x and y [rad].
        lamp_ratio: Brightness of the lamp, as a part of the plain.
        ambient_ratio: The same for the light from everywhere.
        warmth: How much redder, and less blue, the light is.
        cameras: Where the cameras stand.
        floor_colour: None for the plain one.
        floor_pattern: Like `table_pattern`.
        wall_colour: None for no walls.
        wall_pattern: Like `table_pattern`.
        start_offset: Of the arm from where it would start, x, y, z in the base frame [m].
        start_yaw: Turn of the gripper at the start, about the vertical [rad].
        latency_steps: By how much of a control step actions come late, 0 to 1.
        action_noise: Standard deviation of the error of an action, as a part of the action.
        position_noise: Standard deviation of measured positions, each axis [m].
        rotation_noise: Standard deviation of measured orientations, about each axis [rad].
    """

    object_shapes: tuple[str, ...] = ("box",) * COUNT
    object_tallness: tuple[float, ...] = (1.0,) * COUNT
    object_scales: tuple[float, ...] = (1.0,) * COUNT
    object_hue_shift: float = 0.0
    object_saturations: tuple[float, ...] = (1.0,) * COUNT
    object_brightnesses: tuple[float, ...] = (1.0,) * COUNT
    object_mass_ratios: tuple[float, ...] = (1.0,) * COUNT
    friction_ratio: float = 1.0
    clutter: tuple[Thing, ...] = ()
    mats: tuple[Thing, ...] = ()
    table_pattern: str = dressing.PLAIN
    table_colour: Triple | None = None
    lamp_tilt: tuple[float, float] = (0.0, 0.0)
    lamp_ratio: float = 1.0
    ambient_ratio: float = 1.0
    warmth: float = 0.0
    cameras: tuple[CameraShift, ...] = (CameraShift(),) * _COPIES
    floor_colour: Triple | None = None
    floor_pattern: str = dressing.PLAIN
    wall_colour: Triple | None = None
    wall_pattern: str = dressing.PLAIN
    start_offset: Triple = (0.0, 0.0, 0.0)
    start_yaw: float = 0.0
    latency_steps: float = 0.0
    action_noise: float = 0.0
    position_noise: float = 0.0
    rotation_noise: float = 0.0


@dataclasses.dataclass(frozen=True)
class Range:
    """Between which values a quantity is drawn, uniformly, at each strength.

    The unit is for people; a draw of a quantity in cm, mm, mrad or ° is in m or rad.
    """

    quantity: str
    unit: str
    mild: tuple[float, float]
    strong: tuple[float, float]


_SI = {"cm": 1e-2, "mm": 1e-3, "mrad": 1e-3, "°": np.pi / 180}


class Draw:
    """Draws from ranges at one strength, out of one stream."""

    def __init__(self, strength: str, rng: np.random.Generator):
        self.strength, self.rng = strength, rng

    @overload
    def __call__(self, range_: Range) -> float: ...
    @overload
    def __call__(self, range_: Range, count: int) -> tuple[float, ...]: ...
    def __call__(self, range_: Range, count: int | None = None) -> float | tuple[float, ...]:
        """Return one number or a tuple of `count`, in SI units."""
        low, high = range_.mild if self.strength == "mild" else range_.strong
        scale = _SI.get(range_.unit, 1.0)
        values = scale * self.rng.uniform(low, high, count)
        return float(values) if count is None else tuple(map(float, values))

    def triple(self, range_: Range) -> Triple:
        """Return three numbers."""
        x, y, z = self(range_, 3)
        return x, y, z

    def number(self, range_: Range) -> int:
        """Return a whole number, the ends included, each as likely."""
        low, high = range_.mild if self.strength == "mild" else range_.strong
        return int(np.floor(self.rng.uniform(low, high + 1)))

    def colour(self, plain: Triple, range_: Range) -> Triple:
        """Return a colour at most so far from `plain` in each channel."""
        red, green, blue = np.clip(np.add(plain, self(range_, 3)), 0.1, 0.95).tolist()
        return red, green, blue

    def pattern(self) -> str:
        """Return the name of a pattern or plain, each as likely."""
        known = (dressing.PLAIN, *dressing.PATTERNS)
        return known[self.rng.integers(_SOFT_PATTERNS if self.strength == "mild" else len(known))]


_SOFT_PATTERNS = 4  # plain, grain, speckle, weave

TALLNESS = Range(
    "height over width; each a box or an upright cylinder", "×", (0.9, 1.1), (0.8, 1.4)
)
SCALE = Range("width, of 50 mm", "×", (0.94, 1.06), (0.84, 1.2))
HUE = Range("hue, all objects alike", "turns", (-0.03, 0.03), (-0.5, 0.5))
SATURATION = Range("saturation", "×", (0.9, 1.05), (0.7, 1.15))
BRIGHTNESS = Range("brightness", "×", (0.9, 1.1), (0.65, 1.2))
MASS = Range("mass, of 80 g", "×", (0.75, 1.5), (0.4, 3.0))
FRICTION = Range("sliding friction of objects, table and pads", "×", (0.85, 1.15), (0.6, 1.4))
CLUTTER = Range("pieces on the rim", "", (3, 5), (3, 8))
CLUTTER_WIDTH = Range("their half width", "cm", (1.5, 3.0), (1.5, 4.0))
CLUTTER_HEIGHT = Range("their half height", "cm", (1.5, 3.0), (1.5, 6.0))
MATS = Range("mats", "", (0, 1), (0, 3))
MAT_WIDTH = Range("their half width", "cm", (4, 8), (4, 12))
THING_SATURATION = Range("saturation of both", "", (0.0, 0.25), (0.0, 0.9))
TABLE = Range("colour, each channel", "", (-0.06, 0.06), (-0.45, 0.3))
TILT = Range("lamp's direction, about x and y", "°", (-12, 12), (-45, 45))
LAMP = Range("lamp's brightness", "×", (0.8, 1.15), (0.3, 1.5))
AMBIENT = Range("brightness from everywhere", "×", (0.9, 1.1), (0.6, 1.3))
WARMTH = Range("more red, less blue", "", (-0.03, 0.03), (-0.12, 0.12))
CAMERA_MOVE = Range("exterior cameras, sideways and up", "cm", (-2, 2), (-10, 10))
CAMERA_BACK = Range("exterior cameras, backward", "cm", (-0.5, 3), (-1, 15))
CAMERA_TURN = Range("exterior cameras, about each axis", "°", (-0.5, 0.5), (-1.5, 1.5))
WRIST_MOVE = Range("wrist camera, each axis", "mm", (-1, 1), (-5, 5))
WRIST_TURN = Range("wrist camera, about each axis", "°", (-0.5, 0.5), (-3, 3))
FIELD_OF_VIEW = Range("vertical field of view, added", "deg", (-0.5, 2), (-1, 8))
SURROUNDINGS = Range("floor and walls: colour, each channel", "", (-0.08, 0.08), (-0.4, 0.4))
START_OFFSET = Range("tool, forward and left", "cm", (-2, 2), (-6, 6))
START_RAISE = Range("tool, up", "cm", (0, 2), (0, 6))
START_YAW = Range("gripper, about the vertical", "°", (-4, 4), (-20, 20))
LATENCY = Range("lateness of actions", "steps", (0.0, 0.3), (0.0, 1.0))
ACTION_NOISE = Range("std of an action's error", "×", (0.0, 0.05), (0.0, 0.2))
POSITION_NOISE = Range("std of measured position", "mm", (0.0, 1.0), (0.0, 5.0))
ROTATION_NOISE = Range("std of measured orientation", "mrad", (0.0, 5.0), (0.0, 20.0))

# Places for clutter: no gripper, object or cabinet comes here, whatever the task.
_SIDES = [(x, y) for x in (-0.1, 0.05, 0.2, 0.35, 0.5, 0.65) for y in (-0.515, 0.515)]
_ENDS = [(0.9, -0.15), (0.9, 0.0), (0.9, 0.15), (-0.12, -0.33), (-0.12, 0.33)]
RIM = np.array(_SIDES + _ENDS)  # (places, 2) [m]
_RIM_JITTER = 0.015  # [m]
_MATS_LOW, _MATS_HIGH = (0.2, -0.35), (0.75, 0.35)  # [m]
_WALL_COLOUR = (0.62, 0.64, 0.66)
_FLOOR_COLOUR = (0.40, 0.43, 0.47)
_TABLE_COLOUR = (0.74, 0.63, 0.49)


def _object_shape(was: Variation, draw: Draw) -> Variation:
    shapes = tuple("box" if draw.rng.random() < 0.5 else "cylinder" for _ in range(COUNT))
    return dataclasses.replace(was, object_shapes=shapes, object_tallness=draw(TALLNESS, COUNT))


def _object_size(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(was, object_scales=draw(SCALE, COUNT))


def _object_colour(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(
        was,
        object_hue_shift=draw(HUE),
        object_saturations=draw(SATURATION, COUNT),
        object_brightnesses=draw(BRIGHTNESS, COUNT),
    )


def _object_mass(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(was, object_mass_ratios=draw(MASS, COUNT))


def _friction(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(was, friction_ratio=draw(FRICTION))


def _distractors(was: Variation, draw: Draw) -> Variation:
    places = draw.rng.permutation(RIM) + draw.rng.uniform(-_RIM_JITTER, _RIM_JITTER, RIM.shape)
    clutter = tuple(
        _thing(draw, place, half_width=draw(CLUTTER_WIDTH), half_height=draw(CLUTTER_HEIGHT))
        for place in places[: draw.number(CLUTTER)]
    )
    mats = tuple(
        _thing(
            draw,
            draw.rng.uniform(_MATS_LOW, _MATS_HIGH),
            half_width=draw(MAT_WIDTH),
            half_height=dressing.MAT_HALF_THICKNESS,
        )
        for _ in range(draw.number(MATS))
    )
    return dataclasses.replace(was, clutter=clutter, mats=mats)


def _thing(draw: Draw, place: np.ndarray, *, half_width: float, half_height: float) -> Thing:
    hue, saturation = draw.rng.random(), draw(THING_SATURATION)
    return Thing(
        shape="box" if draw.rng.random() < 0.5 else "cylinder",
        x=float(place[0]),
        y=float(place[1]),
        yaw=float(draw.rng.uniform(-np.pi, np.pi)),
        half_width=half_width,
        half_height=half_height,
        colour=colorsys.hsv_to_rgb(hue, saturation, float(draw.rng.uniform(0.4, 0.9))),
    )


def _table_texture(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(
        was, table_pattern=draw.pattern(), table_colour=draw.colour(_TABLE_COLOUR, TABLE)
    )


def _light(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(
        was,
        lamp_tilt=(draw(TILT), draw(TILT)),
        lamp_ratio=draw(LAMP),
        ambient_ratio=draw(AMBIENT),
        warmth=draw(WARMTH),
    )


def _camera_pose(was: Variation, draw: Draw) -> Variation:
    cameras = []
    for name, camera in zip(franka.CAMERAS, was.cameras, strict=True):
        if name == "wrist":
            move, turn = draw.triple(WRIST_MOVE), draw.triple(WRIST_TURN)
        else:
            move = draw(CAMERA_MOVE), draw(CAMERA_MOVE), draw(CAMERA_BACK)
            turn = draw.triple(CAMERA_TURN)
        cameras.append(dataclasses.replace(camera, move=move, turn=turn))
    return dataclasses.replace(was, cameras=tuple(cameras))


def _field_of_view(was: Variation, draw: Draw) -> Variation:
    cameras = tuple(
        dataclasses.replace(camera, fovy_change_deg=draw(FIELD_OF_VIEW)) for camera in was.cameras
    )
    return dataclasses.replace(was, cameras=cameras)


def _background(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(
        was,
        floor_colour=draw.colour(_FLOOR_COLOUR, SURROUNDINGS),
        wall_colour=draw.colour(_WALL_COLOUR, SURROUNDINGS),
        floor_pattern=draw.pattern(),
        wall_pattern=draw.pattern(),
    )


def _arm_start(was: Variation, draw: Draw) -> Variation:
    offset = draw(START_OFFSET), draw(START_OFFSET), draw(START_RAISE)
    return dataclasses.replace(was, start_offset=offset, start_yaw=draw(START_YAW))


def _latency(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(was, latency_steps=draw(LATENCY))


def _action_noise(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(was, action_noise=draw(ACTION_NOISE))


def _pose_noise(was: Variation, draw: Draw) -> Variation:
    return dataclasses.replace(
        was, position_noise=draw(POSITION_NOISE), rotation_noise=draw(ROTATION_NOISE)
    )


@dataclasses.dataclass(frozen=True)
class Factor:
    """How a factor draws, from which ranges, and which question it asks."""

    draw: Callable[[Variation, Draw], Variation]
    ranges: tuple[Range, ...]
    why: str


TABLE_OF_FACTORS = {
    "object_shape": Factor(_object_shape, (TALLNESS,), "objects it has not seen"),
    "object_size": Factor(_object_size, (SCALE,), "does the grasp depend on one width?"),
    "object_colour": Factor(
        _object_colour, (HUE, SATURATION, BRIGHTNESS), "does it follow the picture or the paint?"
    ),
    "object_mass": Factor(_object_mass, (MASS,), "pushes and lifts that answer otherwise"),
    "friction": Factor(_friction, (FRICTION,), "slipping and sliding"),
    "distractors": Factor(
        _distractors,
        (CLUTTER, CLUTTER_WIDTH, CLUTTER_HEIGHT, MATS, MAT_WIDTH, THING_SATURATION),
        "things that do not matter",
    ),
    "table_texture": Factor(_table_texture, (TABLE,), "most of the picture is table"),
    "light": Factor(_light, (TILT, LAMP, AMBIENT, WARMTH), "time of day, lamps"),
    "camera_pose": Factor(
        _camera_pose,
        (CAMERA_MOVE, CAMERA_BACK, CAMERA_TURN, WRIST_MOVE, WRIST_TURN),
        "nobody screws a camera to the same place twice",
    ),
    "field_of_view": Factor(_field_of_view, (FIELD_OF_VIEW,), "another lens or crop"),
    "background": Factor(_background, (SURROUNDINGS,), "another room"),
    "arm_start": Factor(
        _arm_start, (START_OFFSET, START_RAISE, START_YAW), "starts off the beaten track"
    ),
    "latency": Factor(_latency, (LATENCY,), "cameras, networks and planners take time"),
    "action_noise": Factor(_action_noise, (ACTION_NOISE,), "arms go nearly where they are told"),
    "pose_noise": Factor(
        _pose_noise, (POSITION_NOISE, ROTATION_NOISE), "encoders and calibration err"
    ),
}
FACTORS = tuple(TABLE_OF_FACTORS)
"""Names of the factors."""


def parse(text: str) -> Spec:
    """Read a choice of factors, such as ``none``, ``strong``, ``light:mild+camera_pose``.

    Raises:
        ValueError: For an unknown name or strength; names the nearest.
    """
    strengths: dict[str, str] = {}
    for part in text.split("+"):
        name, colon, strength = part.strip().partition(":")
        if not colon and name in LEVELS:
            strengths.update(dict.fromkeys(FACTORS, name))
            continue
        if name not in FACTORS:
            known = FACTORS if colon else LEVELS + FACTORS
            raise ValueError(f"variation {text!r}: unknown factor {_nearest(name, known)}")
        if colon and strength not in LEVELS:
            raise ValueError(f"variation {text!r}: unknown strength {_nearest(strength, LEVELS)}")
        strengths[name] = strength or "strong"
    return Spec(tuple((f, strengths[f]) for f in FACTORS if strengths.get(f, "none") != "none"))


def draw(spec: Spec, rng: np.random.Generator) -> Variation:
    """Draw one episode's differences; takes one number from `rng`, whatever the choice."""
    seed = int(rng.integers(2**63))
    variation = Variation()
    for name, strength in spec.strengths:
        stream = np.random.default_rng([seed, zlib.crc32(name.encode())])
        variation = TABLE_OF_FACTORS[name].draw(variation, Draw(strength, stream))
    return variation


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """Return the tail of an error message about an unknown name."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"{name!r}; did you mean {nearest!r}? Available: {', '.join(known)}"
