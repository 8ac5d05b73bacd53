"""Argument checks shared by the planners: each says what was expected and what came."""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor


def require_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError, suggesting the nearest name, unless `value` is one of `choices`."""
    if value not in choices:
        nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown {name} {value!r}; did you mean {nearest!r}? Available: {', '.join(choices)}"
        )


def require_count(name: str, value: int, *, low: int, high: int | None = None) -> None:
    """Raises ValueError unless `value` is in [low, high]."""
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {allowed}, got {value}")


def per_axis(name: str, value: float | Sequence[float], action_size: int) -> Tensor:
    """Returns float32 (A,) from one number for every action axis or one number each."""
    if isinstance(value, (int, float)):
        return torch.full((action_size,), float(value))
    if len(value) != action_size:
        raise ValueError(
            f"{name} must be one number or one per action axis ({action_size}), got {len(value)}"
        )
    return torch.tensor([float(v) for v in value])


def require_fractions(
    name: str, value: float | Sequence[float], *, high: float | None = None
) -> None:
    """Raises ValueError unless every number is at least 0 and, with `high`, below it."""
    values = [value] if isinstance(value, (int, float)) else list(value)
    if not values or any(not v >= 0 or (high is not None and v >= high) for v in values):
        allowed = "at least 0" if high is None else f"in [0, {high:g})"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
