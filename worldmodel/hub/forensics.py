"""What is really in a checkpoint file: the questions its documentation leaves open, answered.

The questions are those of anyone who loads a published V-JEPA file: is it the published one, do its
names and shapes fit, how far are its two encoders apart, which mask tokens were ever trained, is
the encoder of a world model the one it claims to come from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from worldmodel.hub import huggingface, meta
from worldmodel.hub.download import read_receipt, resolve, sha256
from worldmodel.hub.layout import STALE_KEYS, State, candidates, guess, read_layout, strip
from worldmodel.hub.registry import MODELS, Model

Verdict = Literal["ok", "note", "bad"]

# Entries of a trainer's dict that are plain numbers.
_FIELDS = ("epoch", "batch_size", "world_size", "lr", "loss")
_PARTS = (*meta.ENCODER_KEYS, "predictor")


@dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes:
        verdict: "ok" as published, "bad" not so, "note" neither.
        text: The answer in words.
    """

    verdict: Verdict
    text: str


@dataclass(frozen=True)
class Report:
    """What was found in a checkpoint; print it.

    Attributes:
        path: The file or folder.
        findings: The answers, in the order of the questions.
    """

    path: Path
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is bad."""
        return all(finding.verdict != "bad" for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"{finding.verdict:>4}  {finding.text}" for finding in self.findings]
        return "\n".join([str(self.path), *lines])


def verify(source: str | Path, *, against: str | Path | None = None) -> Report:
    """Returns everything that can be said about a published file: its hash and its contents.

    Args:
        source: A name or a path, see `worldmodel.hub.load`.
        against: Of a world model, the ViT-g file its encoder should come from.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or refused.
    """
    path, model = resolve(source)
    contents = describe_checkpoint(path, against=against)
    return Report(path, (*_hashes(path, model), *contents.findings))


def describe_checkpoint(path: str | Path, *, against: str | Path | None = None) -> Report:
    """Returns what the tensors of a checkpoint tell, without its hash.

    Args:
        path: Meta's file or a Hugging Face folder.
        against: See `verify`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or refused.
    """
    path = Path(path)
    contents = _contents(path)
    states = {key: strip(contents[key]) for key in _PARTS if isinstance(contents.get(key), Mapping)}
    findings = [_entries(contents)]
    for name, state in states.items():
        findings += _part(name, state)
    encoders = [name for name in meta.ENCODER_KEYS if name in states]
    for other in encoders[1:]:
        findings.append(_difference(encoders[0], states[encoders[0]], other, states[other]))
    if "predictor" in states:
        findings += _mask_tokens(states["predictor"])
    if against is not None:
        findings.append(_comparison(states, Path(against)))
    return Report(path, tuple(findings))


def _contents(path: Path) -> dict[str, Any]:
    if path.is_dir():
        _, states = huggingface.read(path)
        return {name: state for name, state in states.items() if state}
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}; download it first")
    return meta.read(path)


def _hashes(path: Path, model: Model | None) -> list[Finding]:
    """Compares the files with the registry, and with what was recorded at their download."""
    by_name = {file.name: file for known in MODELS if len(known.files) == 1 for file in known.files}
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    findings = []
    for file in files:
        digest = sha256(file)
        known = by_name.get(file.name)
        receipt = read_receipt(file)
        if known and known.sha256:
            verdict, rest = ("ok", "as published") if digest == known.sha256 else ("bad", "")
            rest = rest or f"but {known.sha256} is published under this name"
        elif receipt:
            same = digest == receipt["sha256"]
            verdict = "ok" if same else "bad"
            rest = f"{'as' if same else 'not as'} recorded at its download; none is published"
        else:
            verdict, rest = "note", "no published hash is known"
        findings.append(Finding(verdict, f"{file.name}: SHA-256 {digest}, {rest}"))
    return findings


def _entries(contents: dict[str, Any]) -> Finding:
    fields = [f"{key}={contents[key]}" for key in _FIELDS if key in contents]
    names = ", ".join(map(str, contents))
    return Finding("note", f"entries: {names}" + (f" ({', '.join(fields)})" if fields else ""))


def _part(name: str, state: State) -> list[Finding]:
    """Says what one state dict is: its size, its shapes, whether a published model has them."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    total = sum(v.numel() for k, v in tensors.items() if k not in STALE_KEYS)
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in tensors.values()})
    findings = [
        Finding(
            "note",
            f"{name}: {len(tensors)} tensors, {total:,} parameters, {', '.join(kinds)}; "
            f"{guess(tensors)}",
        )
    ]
    stale = sorted(STALE_KEYS & tensors.keys())
    if stale:
        findings.append(Finding("note", f"{name}: position table {', '.join(stale)} in the file"))
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        findings.append(Finding("bad", f"{name}: not finite: {', '.join(broken[:4])}"))
    widths = sorted({v.shape[0] for k, v in tensors.items() if k.endswith("mlp.fc1.weight")})
    if widths:
        findings.append(Finding("note", f"{name}: MLP width {', '.join(map(str, widths))}"))
    expected = _published_totals(name, tensors)
    if expected:
        verdict: Verdict = "ok" if total in expected else "bad"
        shown = " or ".join(f"{n:,}" for n in sorted(expected))
        findings.append(Finding(verdict, f"{name}: {shown} parameters are published"))
    return findings


def _published_totals(name: str, state: State) -> set[int]:
    """Returns the parameter counts of the published models of this geometry, if any."""
    if "action_encoder.weight" in state:
        width = state["action_encoder.weight"].shape[0]
        sizes = [m.predictor for m in MODELS if m.family == "vjepa2-ac"]
        return {s.parameters for s in sizes if s and s.parameters and s.embed_dim == width}
    if name not in meta.ENCODER_KEYS or "patch_embed.proj.weight" not in state:
        return set()
    found = candidates(read_layout(state))
    return {m.encoder.parameters for m in found if m.encoder.parameters is not None}


def _difference(name: str, state: State, other: str, others: State) -> Finding:
    """Says how far apart two encoders are."""
    largest, squares, reference = _distance(state, others)
    if largest == 0:
        return Finding("note", f"{other} equals {name} exactly")
    relative = (squares / reference) ** 0.5 if reference else float("inf")
    return Finding(
        "note",
        f"{other} differs from {name}: at most {largest:.3g}, {relative:.2%} of its norm",
    )


def _comparison(states: dict[str, dict[str, Tensor]], against: Path) -> Finding:
    """Says whether a world model's encoder is the ViT-g it was trained with."""
    if "encoder" not in states:
        return Finding("bad", f"no encoder to compare with {against}")
    other, which = meta.encoder_state(_contents(against), "target_encoder", against)
    mine = {k: v for k, v in states["encoder"].items() if k not in STALE_KEYS}
    theirs = {k: v for k, v in other.items() if k not in STALE_KEYS}
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in theirs.items()}:
        return Finding("bad", f"encoder has other names or shapes than {which} of {against}")
    largest = _distance(mine, theirs)[0]
    if largest == 0:
        return Finding("ok", f"encoder equals {which} of {against} exactly")
    return Finding("bad", f"encoder differs from {which} of {against} by up to {largest:.3g}")


def _distance(state: State, others: State) -> tuple[float, float, float]:
    """Returns the largest difference, the squared distance, and the squared norm of `state`."""
    largest = squares = reference = 0.0
    for key in state.keys() & others.keys() - STALE_KEYS:
        if state[key].shape != others[key].shape:
            continue
        difference = state[key].double() - others[key].double()
        largest = max(largest, float(difference.abs().max()))
        squares += float(difference.square().sum())
        reference += float(state[key].double().square().sum())
    return largest, squares, reference


def _mask_tokens(state: State) -> list[Finding]:
    """Says which mask tokens were trained: one that is still zero never got a gradient."""
    tokens = sorted((key for key in state if key.startswith("mask_tokens.")), key=_number)
    if not tokens:
        return []
    zero = [key.rpartition(".")[2] for key in tokens if not torch.count_nonzero(state[key])]
    text = f"{len(tokens)} mask tokens, still zero: {', '.join(zero) or 'none'}"
    return [Finding("note", f"predictor: {text}")]


def _number(key: str) -> int:
    return int(key.rpartition(".")[2])
