"""Windows of equally spaced frames, found by timestamps and never by counting frames.

A recording's declared rate may be wrong and its frames may jitter or be missing. A window starts at
any frame, at time t0, and its k-th frame is the one nearest to t0 + k * dt * stride; it exists only
if every frame lies within the tolerance and may be used. Several strides give windows at several
time scales. Between two frames of a long stride a recording may have stood still unseen; a maximum
gap keeps windows from reaching across.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from worldmodel.data.resample import nearest

_BLOCK = 1 << 20  # rows looked at together, which bounds the memory that the search takes


@dataclass(frozen=True)
class Window:
    """Frames of one episode at equal distances in time.

    Attributes:
        episode: Position of the episode in the sequence that the index was built from.
        frames: Frame numbers within the episode, int64 (length,).
        stride: Distance of consecutive frames in model steps.
    """

    episode: int
    frames: np.ndarray
    stride: int


class WindowIndex:
    """All windows of a set of episodes.

    Memory is 8 bytes per frame and at most 4 per window and stride (for 4e9 frames); which frames a
    window has is looked up when it is asked for.

    Example:
        index = WindowIndex([store.read_timestamps(i) for i in ids], dt=0.25, length=8)
        episodes, frames = index.sample(np.random.default_rng(0), 48)  # (48,), (48, 8)
    """

    def __init__(
        self,
        timestamps: Sequence[np.ndarray],
        dt: float,
        length: int,
        *,
        strides: Sequence[int] = (1,),
        tolerance: float | None = None,
        max_gap: float | None = None,
        usable: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        """Finds the windows.

        Args:
            timestamps: One strictly increasing array of seconds per episode.
            dt: Model step [s].
            length: Frames per window.
            strides: Distances of consecutive frames, in model steps. One named twice is drawn
                twice as often.
            tolerance: Largest distance of a frame from its ideal time [s]; a quarter of `dt` if
                not given.
            max_gap: No window reaches across two consecutive frames that are further apart than
                this [s], even where it needs none between them; no limit if not given.
            usable: For every episode which of its frames may be in a window, bool, or None where
                all may; a window may still reach across frames that it does not have.

        Raises:
            ValueError: An argument is out of range; an episode's rate does not give windows of
                this `dt`; or there are no windows at all.
        """
        tolerance = 0.25 * dt if tolerance is None else tolerance
        if not dt > 0:
            raise ValueError(f"dt must be a positive number of seconds, got {dt}")
        if length < 1:
            raise ValueError(f"length must be at least 1 frame, got {length}")
        if not 0 <= tolerance < 0.5 * dt:
            raise ValueError(
                f"tolerance must be at least 0 and below half of dt ({0.5 * dt} s), got "
                f"{tolerance} s; beyond, one frame could appear twice in a window"
            )
        if not strides or min(strides) < 1:
            raise ValueError(f"strides must be numbers from 1 up, got {tuple(strides)}")
        if max_gap is not None and not max_gap > 0:
            raise ValueError(f"max_gap must be a positive number of seconds, got {max_gap}")
        if not timestamps:
            raise ValueError("there are no episodes to take windows from")
        for episode, times in enumerate(timestamps):
            if times.ndim != 1 or len(times) == 0 or (np.diff(times) <= 0).any():
                raise ValueError(
                    f"timestamps of episode {episode} must be a non-empty 1-D array that strictly "
                    "increases (seconds of a monotonic clock)"
                )
        masks = [None] * len(timestamps) if usable is None else usable
        if len(masks) != len(timestamps):
            raise ValueError(f"usable is of {len(masks)} episodes, timestamps of {len(timestamps)}")
        for episode, (times, mask) in enumerate(zip(timestamps, masks, strict=True)):
            if mask is not None and (mask.dtype != bool or mask.shape != times.shape):
                raise ValueError(
                    f"usable of episode {episode} is {mask.dtype} {mask.shape}; "
                    f"expected bool {times.shape}"
                )
        self.dt, self.length, self.tolerance = dt, length, tolerance
        self.strides = np.asarray(strides, np.int64)

        # All episodes on one time axis, so far apart that no window reaches into the next one.
        lengths = np.array([len(times) for times in timestamps])
        origins = np.array([times[0] for times in timestamps])
        durations = np.array([times[-1] for times in timestamps]) - origins
        gap = dt * (length * max(strides) + 1)
        begins = np.concatenate([[0.0], np.cumsum(durations + gap)[:-1]])
        self._times = np.concatenate(timestamps, dtype=np.float64)
        self._times += np.repeat(begins - origins, lengths)
        self._first_row = np.concatenate([[0], np.cumsum(lengths)])
        may_use = np.ones(len(self._times), bool)
        for episode, mask in enumerate(masks):
            if mask is not None:
                may_use[self._first_row[episode] : self._first_row[episode + 1]] = mask
        gaps = np.zeros(len(self._times), np.int32)  # how many lie before each row
        if max_gap is not None:
            np.cumsum(np.diff(self._times) > max_gap, out=gaps[1:])

        per_stride = []
        for stride in self.strides:
            firsts = range(0, len(self._times), _BLOCK)
            starts = np.concatenate([self._find_starts(i, stride, may_use, gaps) for i in firsts])
            counts = np.bincount(self._episode_of(starts), minlength=len(timestamps))
            for episode in np.flatnonzero(counts == 0).tolist():
                self._check_rate(episode, timestamps[episode], int(stride))
            per_stride.append(starts)
        self._starts = np.concatenate(per_stride)  # rows of `_times`, stride by stride
        self._stride_ends = np.cumsum([len(starts) for starts in per_stride])
        if len(self._starts) == 0:
            limits = "a gap" if max_gap is None else f"a gap of more than {max_gap:.4g} s"
            limits += "" if usable is None else " or an unusable frame"
            raise ValueError(
                f"no episode is long enough: a window of {length} frames every "
                f"{dt * min(strides):.4g} s lasts {dt * min(strides) * (length - 1):.4g} s, the "
                f"longest of {len(timestamps)} episodes {durations.max():.4g} s without {limits}"
            )

    def __len__(self) -> int:
        """Number of windows, over all strides."""
        return len(self._starts)

    def __getitem__(self, i: int) -> Window:
        """Returns window i, 0 <= i < len(self)."""
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        episodes, frames, strides = self._look_up(np.array([i]))
        return Window(episode=int(episodes[0]), frames=frames[0], stride=int(strides[0]))

    def sample(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws n windows uniformly, with replacement.

        Returns:
            Episode positions (n,) and frame numbers within the episodes (n, length), int64.
        """
        episodes, frames, _ = self._look_up(rng.integers(len(self), size=n))
        return episodes, frames

    def _look_up(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        strides = self.strides[np.searchsorted(self._stride_ends, i, side="right")]
        starts = self._starts[i]
        steps = np.arange(self.length) * strides[:, None]  # (n, length)
        rows = nearest(self._times, self._times[starts][:, None] + steps * self.dt)
        episodes = self._episode_of(starts)
        return episodes, rows - self._first_row[episodes][:, None], strides

    def _find_starts(
        self, first: int, stride: int, may_use: np.ndarray, gaps: np.ndarray
    ) -> np.ndarray:
        """Returns the rows of the block from `first` on that a window of this stride starts at."""
        starts = first + np.flatnonzero(may_use[first : first + _BLOCK])
        for k in range(1, self.length):
            ideal = self._times[starts] + k * stride * self.dt
            found = nearest(self._times, ideal)
            fits = np.abs(self._times[found] - ideal) <= self.tolerance
            fits &= may_use[found] & (gaps[found] == gaps[starts])
            starts = starts[fits]
        return starts.astype(np.min_scalar_type(len(self._times)))

    def _episode_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first_row, rows, side="right") - 1

    def _check_rate(self, episode: int, times: np.ndarray, stride: int) -> None:
        """Raises if an episode has no window because of its rate, not its length or its gaps."""
        ideal = np.arange(self.length) * stride * self.dt
        duration = times[-1] - times[0]
        if len(times) < 2 or duration < ideal[-1] - self.tolerance:
            return
        # Gaps mislead the mean and jitter the median, a wrong rate shows in both.
        intervals = np.median(np.diff(times)), duration / (len(times) - 1)
        errors = [np.abs(np.round(ideal / i) * i - ideal).max() for i in intervals]
        if min(errors) > self.tolerance:
            raise ValueError(
                f"episode {episode} runs at {1 / intervals[0]:.4g} Hz by its timestamps, which "
                f"gives no windows of {self.length} frames at {1 / (self.dt * stride):.4g} Hz "
                f"(dt = {self.dt:.4g} s, stride {stride}) within {self.tolerance:.3g} s; "
                "choose a dt and strides that fit the recording, or leave the episode out"
            )


def split_episodes(
    ids: Iterable[int], validation_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Splits episodes into training and validation by a hash of seed and id.

    An episode stays on its side however many others are added, so the fraction is met on average
    only. Of few episodes chance may leave none on a side that should have some: then the one
    nearest to the border crosses it.

    Returns:
        Training ids and validation ids, in the order given.
    """
    if not 0 <= validation_fraction <= 1:
        raise ValueError(f"validation_fraction must be within 0..1, got {validation_fraction}")
    ids = list(ids)
    places = {i: _place(seed, i) for i in ids}
    validation = {i for i in ids if places[i] < validation_fraction}
    if 0 < validation_fraction < 1 and len(ids) > 1:
        if not validation:
            validation = {min(ids, key=lambda i: places[i])}
        elif len(validation) == len(ids):
            validation.remove(max(ids, key=lambda i: places[i]))
    return [i for i in ids if i not in validation], [i for i in ids if i in validation]


def _place(seed: int, episode_id: int) -> float:
    """Returns a number in [0, 1) that depends on nothing else."""
    digest = hashlib.sha256(f"{seed}:{episode_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
