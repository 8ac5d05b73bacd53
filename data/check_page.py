"""The findings of a check as one page: what, where, why it matters, what to do, and a look at it.

The page is one file that loads nothing from elsewhere: its pictures are JPEGs and its curves SVGs
within it. It is light or dark as the reader's machine is.
"""

import base64
import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from worldmodel.data.checks.findings import KINDS, Finding
from worldmodel.data.episode import Episode
from worldmodel.data.frames import FrameReadError, Frames
from worldmodel.data.mapping import to_episode
from worldmodel.data.rotations import angle_between
from worldmodel.data.source import Source
from worldmodel.data.validate import CheckReport
from worldmodel.pose import POSITION, ROTATION, euler_to_matrix

MAX_ROWS = 20  # of one kind; programs read the rest as JSON
THUMBNAILS, THUMBNAIL_HEIGHT, JPEG_QUALITY = 8, 90, 72
MAX_POINTS = 400  # of a curve: more do not show
_RED = (220, 38, 38)
_SEVERITIES = ("error", "warning", "info")


def write_check_page(
    report: CheckReport, source: Source, file: str | Path, *, episodes: int = 8
) -> Path:
    """Writes the page of a check.

    Args:
        report: What was found.
        source: Where the recordings are, for the pictures.
        file: HTML file to write; its folder is made.
        episodes: How many episodes to show: those with findings first, worst first, then others
            evenly spread over the set.

    Returns:
        `file`.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    shown = _choose(report, list(source.ids()), episodes)
    file.write_text(_page(report, source, shown), encoding="utf-8")
    return file


def _choose(report: CheckReport, ids: Sequence[int], count: int) -> list[int]:
    worst: dict[int, int] = {}
    for found in report.findings:
        if found.episode is not None:
            rank = _SEVERITIES.index(found.severity)
            worst[found.episode] = min(rank, worst.get(found.episode, rank))
    chosen = sorted(worst, key=lambda episode: (worst[episode], episode))[:count]
    others = [i for i in ids if i not in worst]
    spare = min(count - len(chosen), len(others))
    picks = np.linspace(0, len(others) - 1, spare).round().astype(int) if spare else []
    return chosen + [others[k] for k in picks]


def _page(report: CheckReport, source: Source, shown: Sequence[int]) -> str:
    counts = {s: sum(f.severity == s for f in report.findings) for s in _SEVERITIES}
    name = Path(report.path).name or report.path
    verdict = ", ".join(_count(counts[s], s) for s in ("error", "warning") if counts[s])
    headline = f"{escape(name)}: {verdict or 'nothing wrong found'}"
    cards = "\n".join(_card(report, source, episode) for episode in shown)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{headline}</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<h1>{headline}</h1>
<p class="lead">{escape(report.path)}, read as {escape(report.format)}. Episodes with an error are
quarantined: they are left out of training, and it is said how many.</p>
{_tiles(report)}
<section>
<h2>Findings</h2>
{_findings(report, shown)}
</section>
<section>
<h2>Episodes{", those with findings first" if report.findings else ""}</h2>
<p class="note">{len(shown)} of {report.episodes} episodes. Frames are evenly spread in time; a red
edge marks a row that a finding names.</p>
{cards}
</section>
</main>
</body>
</html>
"""


def _tiles(report: CheckReport) -> str:
    rate = "none" if report.clock_hz is None else f"{report.clock_hz:.4g} Hz"
    tiles = [
        (f"{report.episodes}", f"episodes, {report.steps} steps"),
        (f"{len(report.quarantined)}", "of them quarantined"),
        (rate, "clock"),
        (f"{len(report.cameras)}", f"cameras: {', '.join(report.cameras) or 'none'}"),
    ]
    items = "\n".join(f"<li><b>{v}</b> <span>{escape(text)}</span></li>" for v, text in tiles)
    return f'<ul class="tiles">\n{items}\n</ul>'


def _findings(report: CheckReport, shown: Sequence[int]) -> str:
    if not report.findings:
        return "<p>None: every check that could be made was passed.</p>"
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for found in report.findings:
        groups[found.severity, found.code].append(found)
    ordered = sorted(groups, key=lambda key: (_SEVERITIES.index(key[0]), -len(groups[key]), key[1]))
    return "\n".join(_group(groups[key], shown) for key in ordered)


def _group(found: Sequence[Finding], shown: Sequence[int]) -> str:
    """All findings of one severity and code: what they share is said once."""
    first = found[0]
    fixes = {f.fix for f in found}
    rows = "\n".join(_row(f, shown, with_fix=len(fixes) > 1) for f in found[:MAX_ROWS])
    rest = len(found) - MAX_ROWS
    more = (
        f'<p class="note">and {rest} more; <code>--json</code> lists all.</p>' if rest > 0 else ""
    )
    fix = f"<dt>What to do</dt><dd>{_text(first.fix)}</dd>" if len(fixes) == 1 else ""
    head = "<th scope=col>what to do</th>" if len(fixes) > 1 else ""
    return f"""<article class="{first.severity}">
<h3><span class="mark {first.severity}">{first.severity}</span> {KINDS[first.code].title}
<small>{len(found)} × <code>{first.code}</code></small></h3>
<dl><dt>Why it matters</dt><dd>{_text(first.why)}</dd>{fix}</dl>
<div class="wide"><table>
<thead><tr><th scope=col>episode</th><th scope=col>row</th>
<th scope=col>what</th>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
{more}
</article>"""


def _row(found: Finding, shown: Sequence[int], *, with_fix: bool) -> str:
    if found.episode is None:
        where = "the set"
    elif found.episode in shown:
        where = f'<a href="#episode-{found.episode}">{found.episode}</a>'
    else:
        where = f"{found.episode}"
    step = "" if found.step is None else f"{found.step}"
    fix = f"<td>{_text(found.fix)}</td>" if with_fix else ""
    return f"<tr><td>{where}</td><td>{step}</td><td>{_text(found.message)}</td>{fix}</tr>"


def _card(report: CheckReport, source: Source, episode: int) -> str:
    """One episode: what was found in it, its frames, its curves."""
    found = [f for f in report.findings if f.episode == episode]
    marks = " ".join(f'<span class="mark {f.severity}">{f.code}</span>' for f in found)
    steps = sorted({f.step for f in found if f.step is not None})
    try:
        raw = source.raw(episode)
        frames = {
            n: raw.cameras[c.key] for n, c in source.mapping.cameras.items() if c.key in raw.cameras
        }
        name, body = raw.name, _sheets(frames, steps)
        try:
            body += _curves(to_episode(raw, source.mapping, source=source.format), steps)
        except ValueError as error:
            body += f'<p class="note">{escape(str(error))}</p>'
    except (ValueError, KeyError, OSError) as error:
        name, body = "", f'<p class="note">{escape(str(error))}</p>'
    return f"""<article id="episode-{episode}">
<h3>Episode {episode} <small>{escape(name)}</small></h3>
<p class="marks">{marks}</p>
{body}
</article>"""


def _sheets(frames: dict[str, Frames], steps: Sequence[int]) -> str:
    return "\n".join(
        f'<figure><figcaption>{escape(name)}</figcaption><div class="wide"><img '
        f'src="{_sheet(camera, steps)}" alt="frames of {escape(name)}, in order"></div></figure>'
        for name, camera in frames.items()
        if len(camera)
    )


def _sheet(frames: Frames, steps: Sequence[int]) -> str:
    """Returns a JPEG as a data address: frames side by side, those that findings name edged red."""
    spread = np.linspace(0, len(frames) - 1, THUMBNAILS).round().astype(int).tolist()
    named = [step for step in steps if step < len(frames)][: THUMBNAILS // 2]
    height, width = frames.shape[1:3]
    size = (max(8, round(THUMBNAIL_HEIGHT * width / height)), THUMBNAIL_HEIGHT)
    tiles = []
    for k in sorted({*spread, *named}):
        try:
            tile = cv2.resize(frames[k], size, interpolation=cv2.INTER_AREA)
        except FrameReadError:
            tile = np.full((size[1], size[0], 3), 96, np.uint8)
            cv2.line(tile, (0, 0), size, _RED, 2)
        if k in named:
            cv2.rectangle(tile, (0, 0), (size[0] - 1, size[1] - 1), _RED, 4)
        tiles.append(
            cv2.copyMakeBorder(tile, 0, 0, 0, 3, cv2.BORDER_CONSTANT, value=(128, 128, 128))
        )
    sheet = cv2.cvtColor(np.concatenate(tiles, axis=1), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"


def _curves(episode: Episode, steps: Sequence[int]) -> str:
    proprio = episode.proprio.astype(np.float64)
    if not np.isfinite(proprio).all() or not np.isfinite(episode.timestamps).all():
        return '<p class="note">No curves: some numbers are not finite.</p>'
    rotation = euler_to_matrix(proprio[:, ROTATION])
    turned = np.degrees(angle_between(rotation[:-1], rotation[1:]))
    moved = 100 * np.linalg.norm(np.diff(proprio[:, POSITION], axis=0), axis=1)
    curves = [
        _curve("between rows [ms]", [1000 * np.diff(episode.timestamps)], steps, ("",)),
        _curve("position [m]", list(proprio[:, POSITION].T), steps, ("x", "y", "z")),
        _curve("per step: cm, degrees", [moved, turned], steps, ("moved", "turned")),
        _curve("gripper, closed is 1", [proprio[:, 6]], steps, ("",)),
    ]
    return f'<div class="curves">{"".join(curves)}</div>'


def _curve(
    title: str, lines: Sequence[np.ndarray], steps: Sequence[int], names: Sequence[str]
) -> str:
    """Returns an SVG of lines over the rows."""
    width, height = 240, 100
    low, high = min(line.min() for line in lines), max(line.max() for line in lines)
    span = max(high - low, 0.02 * max(abs(high), abs(low)), 1e-9)  # no microscope on a flat line
    bottom = (low + high - span) / 2
    rows = max(len(line) for line in lines)
    across = width / max(rows - 1, 1)
    drawn = []
    for k, line in enumerate(lines):
        stride = math.ceil(len(line) / MAX_POINTS)
        points = " ".join(
            f"{i * across:.1f},{height * (1 - (line[i] - bottom) / span):.1f}"
            for i in range(0, len(line), stride)
        )
        drawn.append(f'<polyline class="line{k}" points="{points}"/>')
    marks = "".join(
        f'<path class="at" d="M{s * across:.1f} 0V{height}"/>' for s in steps if s < rows
    )
    legend = "".join(f'<span class="key{k}">{name}</span>' for k, name in enumerate(names) if name)
    return (
        f"<figure><figcaption>{title} {legend}</figcaption>"
        f'<svg viewBox="-2 -2 {width + 4} {height + 4}" role="img" aria-label="{title}">'
        f"{marks}{''.join(drawn)}</svg>"
        f"<small>{low:.3g} to {high:.3g}</small></figure>"
    )


def _text(message: str) -> str:
    """Escapes; what stands between backquotes is code."""
    parts = escape(message).split("`")
    return "".join(f"<code>{part}</code>" if k % 2 else part for k, part in enumerate(parts))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


_CSS = """
:root {
  --paper: #fff; --card: #f6f7f9; --ink: #1f2937; --muted: #5b6472; --line: #d9dde3;
  --accent: #2563eb; --error: #dc2626; --warning: #b45309; --info: #5b6472;
  --first: #2563eb; --second: #d97706; --third: #15803d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161c; --card: #1b212a; --ink: #e6e9ee; --muted: #9aa4b2; --line: #323b47;
    --accent: #7aa7ff; --first: #7aa7ff; --second: #f0a94b; --third: #4ec07a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 {
  font-size: 1rem; margin: 0 0 .4rem; display: flex; flex-wrap: wrap; gap: .3rem .7rem;
  align-items: baseline;
}
h3 small { margin-left: auto; overflow-wrap: anywhere; }
a { color: var(--accent); }
small, .note, .lead, dt, figcaption { color: var(--muted); }
small { font-weight: normal; }
code { font-size: .9em; overflow-wrap: anywhere; }
.lead { margin: 0 0 1.5rem; max-width: 44rem; overflow-wrap: anywhere; }
.note { font-size: .875rem; max-width: 44rem; margin: .4rem 0; overflow-wrap: anywhere; }
.tiles {
  list-style: none; padding: 0; margin: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
}
.tiles li { background: var(--card); border-radius: 10px; padding: .9rem 1rem; }
.tiles b { display: block; font-size: 1.6rem; line-height: 1.2; }
.tiles span { color: var(--muted); font-size: .875rem; }
article {
  background: var(--card); border-radius: 10px; padding: 1rem; margin: 0 0 1rem;
  scroll-margin-top: 1rem;
}
article.error { border-left: 4px solid var(--error); }
article.warning { border-left: 4px solid var(--warning); }
article:target { outline: 2px solid var(--accent); }
dl { margin: 0 0 .6rem; display: grid; grid-template-columns: 8rem 1fr; gap: .2rem .8rem; }
dt, .tiles span, figcaption { font-size: .875rem; }
dd { margin: 0; }
@media (max-width: 520px) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td {
  text-align: left; vertical-align: top; font-weight: normal;
  padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
}
td:nth-child(n+3) { min-width: 13rem; }
th:nth-child(-n+2) { width: 1%; }
thead th { color: var(--muted); font-size: .875rem; }
.mark { color: #fff; border-radius: 99px; padding: .05rem .65rem; font-size: .8125rem; }
.mark.error { background: var(--error); }
.mark.warning { background: var(--warning); }
.mark.info { background: var(--info); }
.marks { margin: 0 0 .6rem; display: flex; flex-wrap: wrap; gap: .4rem; }
.marks:empty { display: none; }
figure { margin: 0 0 .6rem; }
img { display: block; height: 90px; border-radius: 4px; }
.curves {
  display: grid; gap: .75rem 1.25rem; margin-top: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(200px, 1fr));
}
.curves figure { margin: 0; }
.curves svg { display: block; width: 100%; border-bottom: 1px solid var(--line); }
polyline { fill: none; stroke-width: 1.3; vector-effect: non-scaling-stroke; }
.line0 { stroke: var(--first); } .line1 { stroke: var(--second); } .line2 { stroke: var(--third); }
.key0 { color: var(--first); } .key1 { color: var(--second); } .key2 { color: var(--third); }
figcaption span { margin-left: .4rem; }
.at { stroke: var(--error); stroke-dasharray: 3 3; opacity: .8; }
"""
