"""The report of an evaluation: one page with its numbers, curves, failures and videos."""

import json
from collections.abc import Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldmodel.failures import where_it_fails
from worldmodel.metrics import closes_gripper, failure_rows
from worldmodel.results import EpisodeResult, Evaluation, PolicyResult
from worldmodel.video import (
    FAINT,
    INK,
    MISSED,
    MUTED,
    REACHED,
    split_curve,
    write_filmstrip,
    write_gif,
    write_video,
)

__all__ = [
    "median_curve",
    "plot_curves",
    "write_filmstrip",
    "write_gif",
    "write_report",
    "write_video",
]

_BASELINE_STYLES = (":", "-.", "--")


def write_report(folder: Path, evaluation: Evaluation) -> Path:
    """Writes `report.html` with its curves, and videos and filmstrips where frames were kept.

    The page loads nothing from elsewhere; it links to `curves.png`, `episodes/<seed>.mp4` and
    `filmstrips/<seed>.png` beside it. The same evaluation gives the same page, byte for byte.

    Args:
        folder: Where to write; made if it is not there.
        evaluation: What was measured.

    Returns:
        The path of the page.
    """
    for part in ("episodes", "filmstrips"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for episode in evaluation.planner.episodes:
        if _has_pictures(episode):
            write_video(folder / _video_link(episode), episode)
            write_filmstrip(folder / _filmstrip_link(episode), episode)
    plot_curves(folder / "curves.png", evaluation)
    page = folder / "report.html"
    page.write_text(_page(evaluation), encoding="utf-8")
    return page


def plot_curves(path: Path, evaluation: Evaluation) -> None:
    """Writes a PNG with distance (left) and energy (right) of every episode over the steps.

    A thin line is an episode, green if the goal was reached; the thick line is their median; the
    medians of the baselines are grey. Episodes that ended early count with their last value.

    Energies to different sub-goals do not compare: with several, the line of an episode is broken
    where the next one took over, a dot marks where it begins, and there is no median.

    Args:
        path: File to write; its folder exists.
        evaluation: What was measured.
    """
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    episodes = evaluation.planner.episodes
    _plot_episodes(left, episodes, [100 * episode.distances for episode in episodes])
    left.plot(
        median_curve([100 * episode.distances for episode in episodes]),
        color=INK,
        linewidth=2.5,
        label="planner, median",
    )
    for baseline, style in zip(evaluation.baselines, cycle(_BASELINE_STYLES), strict=False):
        median = median_curve([100 * episode.distances for episode in baseline.episodes])
        left.plot(
            median, style, color=MUTED, linewidth=1.5, label=f"{_words(baseline.name)}, median"
        )
    left.set_ylim(bottom=0)
    left.set_title("Distance to the goal [cm]", loc="left", fontsize=11)
    several = any(len(episode.stage_names) > 1 for episode in episodes)
    goal = "present sub-goal's image" if several else "goal image"
    right.set_title(f"Energy: latent distance to the {goal}", loc="left", fontsize=11)
    if all(episode.energies.size for episode in episodes):
        _plot_episodes(right, episodes, [episode.energies for episode in episodes], split=True)
        if not several:
            median = median_curve([episode.energies for episode in episodes])
            right.plot(median, color=INK, linewidth=2.5)
    else:
        right.text(0.02, 0.9, "none: this policy has no world model", transform=right.transAxes)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.margins(x=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.4)
    figure.legend(*_legend(left), loc="outside lower center", ncols=6, frameon=False, fontsize=8.5)
    figure.savefig(path, format="png", metadata={"Software": None})


def median_curve(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the median of 1-D curves at each step; shorter ones go on with their last value."""
    length = max(len(curve) for curve in curves)
    padded = [np.pad(curve, (0, length - len(curve)), mode="edge") for curve in curves]
    return np.median(padded, axis=0)


def _plot_episodes(
    axes: Axes,
    episodes: Sequence[EpisodeResult],
    curves: Sequence[np.ndarray],
    *,
    split: bool = False,
) -> None:
    """Draws a thin line an episode; with `split`, broken where the next sub-goal took over."""
    # Failures are few: drawn last and stronger, they are not hidden among the successes.
    for episode, curve in sorted(
        zip(episodes, curves, strict=True), key=lambda x: not x[0].success
    ):
        color, alpha, label = (
            (REACHED, 0.35, "reached") if episode.success else (MISSED, 0.8, "missed")
        )
        if split and len(episode.stage_names) > 1:
            axes.plot(*split_curve(curve, episode.stages), color=color, alpha=alpha, linewidth=0.9)
            begun = np.flatnonzero(np.diff(episode.stages)) + 1
            axes.plot(begun, curve[begun], "o", color=color, alpha=alpha, markersize=3)
        else:
            axes.plot(curve, color=color, alpha=alpha, linewidth=0.9, label=label)


def _legend(axes: Axes) -> tuple[list[Artist], list[str]]:
    """Returns handles and labels, one a label."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    return list(unique.values()), list(unique)


def _page(evaluation: Evaluation) -> str:
    planner = evaluation.planner
    headline = (
        f"{escape(evaluation.task)}: {planner.successes} of {len(planner.episodes)} goals reached"
    )
    given = (
        "one image for every sub-goal of the task, and goes on to the next when it is there"
        if evaluation.subgoals
        else "the goal only, as an image"
    )
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
<p class="lead">The planner is given {given}. A goal counts as reached when the task's condition is
held at the last step. Variation of the scene: {escape(evaluation.variation)}.</p>
{_tiles(planner)}
<section>
<h2>Beside other policies</h2>
{_policy_table(evaluation)}
</section>
<section>
<h2>What went wrong</h2>
{_failures(evaluation)}
</section>
<section>
<h2>Distance and energy over time</h2>
<a href="curves.png"><img class="curves" src="curves.png" width="1500" height="630"
 alt="Distance to the goal and energy over the steps of every episode"></a>
</section>
{_gallery(planner)}
<section>
<h2>How it was run</h2>
{_command(evaluation.command)}
<details>
<summary>Settings and machine</summary>
{_key_table("Settings", {"task": evaluation.task, "seed": evaluation.seed, **evaluation.settings})}
{_key_table("Machine", evaluation.machine)}
</details>
</section>
</main>
</body>
</html>
"""


def _command(command: str | None) -> str:
    return "" if command is None else f'<pre class="wide">{escape(command)}</pre>'


def _tiles(planner: PolicyResult) -> str:
    """The numbers to read first."""
    final = 100 * planner.final_distances
    steps = [e.steps_to_success for e in planner.episodes if e.steps_to_success is not None]
    tiles = [
        (_percent(planner.success_rate), f"reached; 95 % interval {_percent_range(planner)}"),
        (f"{np.median(final):.1f} cm", "median distance at the end"),
    ]
    if steps:
        tiles.append((f"{np.median(steps):.0f}", "steps to success, median"))
    for times, what in ((planner.plan_ms, "plan a step"), (planner.encode_ms, "encode an image")):
        if times.size:
            p50, p95 = np.percentile(times, (50, 95))
            tiles.append((_duration(p50), f"to {what}, median; p95 {_duration(p95)}"))
    items = "\n".join(f"<li><b>{value}</b> <span>{text}</span></li>" for value, text in tiles)
    return f'<ul class="tiles">\n{items}\n</ul>'


def _policy_table(evaluation: Evaluation) -> str:
    paired = {one.against: one for one in evaluation.paired}
    rows = []
    for result in evaluation.policies:
        steps = [e.steps_to_success for e in result.episodes if e.steps_to_success is not None]
        ever = sum(episode.ever_successful for episode in result.episodes)
        one = paired.get(result.name)
        rows.append(
            f"<tr><th scope=row>{escape(_words(result.name))}</th>"
            f"<td>{result.successes} of {len(result.episodes)}</td>"
            f"<td>{_percent(result.success_rate)} <small>({_percent_range(result)})</small>"
            f"{_interval_svg(result)}</td>"
            f"<td>{ever}</td>"
            f"<td>{100 * np.median(result.final_distances):.1f} cm</td>"
            f"<td>{f'{np.median(steps):.0f}' if steps else ''}</td>"
            f"<td>{'' if one is None else f'{one.only_planner} : {one.only_other}'}</td>"
            f"<td>{'' if one is None else f'{one.p_value:.2g}'}</td></tr>"
        )
    return f"""<div class="wide"><table>
<thead><tr><th scope=col>policy</th><th scope=col>reached</th>
<th scope=col>rate <small>(95 % Wilson interval)</small></th>
<th scope=col>held at<br>any time</th>
<th scope=col>final distance,<br>median</th><th scope=col>steps,<br>median</th>
<th scope=col>only planner :<br>only it</th><th scope=col>McNemar p</th></tr></thead>
<tbody>
{"".join(f"{row}{chr(10)}" for row in rows).strip()}
</tbody>
</table></div>
<p class="note">All policies start from the same seeds, which no training episode has; the oracle
does the first of them only. {evaluation.goal_rejections} placements were drawn again, because they
were solved at the start or not solvable. The expert and the oracle read the simulator. The bars run
from 0 to 100&nbsp;%. p: exact McNemar test of the planner against the row, on the episodes both
did.</p>"""


def _interval_svg(result: PolicyResult) -> str:
    """A bar from 0 to 100 %: the interval, and a dot at the rate."""
    low, high = (100 * bound for bound in result.interval)
    rate = 100 * result.success_rate
    return (
        '<svg class="interval" viewBox="-3 0 106 8" role="img" '
        f'aria-label="{_percent(result.success_rate)}, interval {_percent_range(result)}">'
        '<path class="axis" d="M0 4H100M0 2V6M50 3V5M100 2V6"/>'
        f'<rect x="{low:.2f}" y="2.5" width="{high - low:.2f}" height="3" rx="1.5"/>'
        f'<circle cx="{rate:.2f}" cy="4" r="2.2"/></svg>'
    )


def _failures(evaluation: Evaluation) -> str:
    planner = evaluation.planner
    failures = [episode for episode in planner.episodes if not episode.success]
    if not failures:
        return f"<p>Nothing: all {len(planner.episodes)} goals were reached.</p>"
    passed = sum(episode.ever_successful for episode in failures)
    rows = "\n".join(map(_failure_row, failures))
    return f"""<p>{len(failures)} of {len(planner.episodes)} goals were missed. In {passed}
of these the goal was held on the way and left again.</p>
{_stage_table(evaluation)}
<div class="wide"><table>
<thead><tr><th scope=col>seed</th><th scope=col>start</th><th scope=col>closest</th>
<th scope=col>end</th><th scope=col>energy, closest</th><th scope=col>energy, end</th>
<th scope=col>sub-goals</th><th scope=col>first grip</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
<p class="note">Energy lower at the end than at the closest point: the model took the wrong
place for the goal. Higher at the end: the model rated the closest point better, and the plan left
it or did not come back. Energies to different sub-goals do not compare. First grip: when the
fingers first closed, and how far the tool then was from the nearest cube's centre.</p>"""


def _stage_table(evaluation: Evaluation) -> str:
    """Where it fails: failed episodes by the sub-goal in which they ended."""
    stages = where_it_fails(evaluation.planner.episodes)
    header, rows = failure_rows(stages, grips=closes_gripper(evaluation))
    head = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in header)
    body = "\n".join(
        f"<tr><th scope=row>{escape(str(row[0]))}</th>"
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"""<h3>Where it fails</h3>
<div class="wide"><table class="stages"><thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>
<h3>Failed episodes</h3>"""


def _failure_row(episode: EpisodeResult) -> str:
    closest = int(np.argmin(episode.distances))
    start, best, end = (f"{100 * episode.distances[step]:.1f} cm" for step in (0, closest, -1))
    energies = [
        f"{episode.energies[step]:.3f}" if episode.energies.size else "–" for step in (closest, -1)
    ]
    seed = escape(str(episode.seed))
    name = f'<a href="#{_anchor(episode)}">{seed}</a>' if _has_pictures(episode) else seed
    return (
        f"<tr><th scope=row>{name}</th><td>{start}</td>"
        f"<td>{best} <small>at step {closest}</small></td><td><b>{end}</b></td>"
        f"<td>{energies[0]}</td><td>{energies[1]}</td>"
        f"<td>{_stage_story(episode)}</td><td>{_grip_text(episode)}</td></tr>"
    )


def _stage_story(episode: EpisodeResult) -> str:
    """The sub-goals in words: when each took over, and why the one before was left."""
    if len(episode.stage_names) < 2:
        return "–"
    parts = [escape(episode.stage_names[0])]
    for switch in episode.switches:
        reason = "out of time" if switch.reason == "limit" else switch.reason
        name = escape(episode.stage_names[switch.stage])
        parts.append(f"{name} <small>from step {switch.step}, {escape(reason)}</small>")
    missing = len(episode.stage_names) - 1 - int(episode.stages[-1])
    left = f"<br><small>{missing} never tried</small>" if missing else ""
    return "<br>".join(parts) + left


def _grip_text(episode: EpisodeResult) -> str:
    grip = episode.first_grip
    if grip is None:
        return "–"
    return f"{100 * grip.distance:.1f} cm <small>at step {grip.step}</small>"


def _gallery(planner: PolicyResult) -> str:
    """The episodes whose frames were kept, failures first."""
    shown = sorted(filter(_has_pictures, planner.episodes), key=lambda episode: episode.success)
    if not shown:
        return ""
    cards = "\n".join(map(_card, shown))
    more = len(planner.episodes) - len(shown)
    note = f'<p class="note">{more} more episodes were run without keeping their frames.</p>'
    return f"""<section>
<h2>Episodes, failures first</h2>
<div class="gallery">
{cards}
</div>
{note if more else ""}
</section>"""


def _card(episode: EpisodeResult) -> str:
    verdict = "reached" if episode.success else "missed"
    start, end = (f"{100 * episode.distances[step]:.1f} cm" for step in (0, -1))
    strip = quote(_filmstrip_link(episode))
    return f"""<article class="{verdict}" id="{_anchor(episode)}">
<h3><span class="mark {verdict}">{verdict}</span> {start} → {end}
<small>seed {escape(str(episode.seed))}</small></h3>
<video controls loop muted playsinline preload="metadata" width="800" height="292"
 src="{quote(_video_link(episode))}"></video>
<a href="{strip}"><img src="{strip}" loading="lazy"
 alt="Frames over time, the goals, distances and energies of this episode"></a>
</article>"""


def _key_table(title: str, values: dict[str, object]) -> str:
    rows = "\n".join(
        f"<tr><th scope=row>{escape(key)}</th><td>{escape(value)}</td></tr>"
        for key, value in _flatten(values)
    )
    return (
        f'<h3>{title}</h3>\n<div class="wide"><table class="keys"><tbody>\n{rows}\n'
        "</tbody></table></div>"
    )


def _flatten(values: dict[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Returns nested settings as dotted names and their values in words."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows.extend(_flatten(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            text = "none" if value is None else text
            rows.append((f"{prefix}{key}", text))
    return rows


def _has_pictures(episode: EpisodeResult) -> bool:
    return episode.frames is not None and episode.goal_images is not None


def _video_link(episode: EpisodeResult) -> str:
    return f"episodes/{episode.seed}.mp4"


def _filmstrip_link(episode: EpisodeResult) -> str:
    return f"filmstrips/{episode.seed}.png"


def _anchor(episode: EpisodeResult) -> str:
    return escape(f"episode-{episode.seed}")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _percent_range(result: PolicyResult) -> str:
    low, high = result.interval
    return f"{100 * low:.0f} to {_percent(high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.2f} s"


_CSS = """
:root {
  --paper: #fff; --card: #f6f7f9; --ink: #1f2937; --muted: #5b6472; --line: #d9dde3;
  --accent: #2563eb; --good: #15803d; --bad: #dc2626;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161c; --card: #1b212a; --ink: #e6e9ee; --muted: #9aa4b2; --line: #323b47;
    --accent: #7aa7ff; --good: #22a355; --bad: #ef5350;
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
h3 { font-size: 1rem; margin: 0 0 .6rem; }
a { color: var(--accent); }
small, .note, .lead { color: var(--muted); }
small { font-weight: normal; }
.lead { margin: 0 0 1.5rem; max-width: 44rem; }
.note { font-size: .875rem; max-width: 44rem; margin: .6rem 0 0; }
.tiles {
  list-style: none; padding: 0; margin: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
}
.tiles li { background: var(--card); border-radius: 10px; padding: .9rem 1rem; }
.tiles b { display: block; font-size: 1.6rem; line-height: 1.2; }
.tiles span { color: var(--muted); font-size: .875rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td {
  text-align: left; vertical-align: top; font-weight: normal;
  padding: .45rem 1rem .45rem 0; border-bottom: 1px solid var(--line);
}
thead th { color: var(--muted); font-size: .875rem; vertical-align: bottom; }
tbody th, tbody td { white-space: nowrap; }
@media (max-width: 520px) { th, td { padding-right: .7rem; } }
.interval { display: block; width: 100%; max-width: 320px; margin-top: .15rem; }
.interval .axis { stroke: var(--line); stroke-width: .6; fill: none; }
.interval rect { fill: var(--accent); opacity: .4; }
.interval circle { fill: var(--accent); }
img, video { display: block; width: 100%; height: auto; border-radius: 6px; background: #fff; }
.curves { padding: .5rem; border-radius: 10px; }
.gallery {
  display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr));
}
article { background: var(--card); border-radius: 10px; padding: 1rem; scroll-margin-top: 1rem; }
article.missed { grid-column: 1 / -1; }
article:target { outline: 2px solid var(--accent); }
article h3 { display: flex; flex-wrap: wrap; gap: .3rem .7rem; align-items: baseline; }
article h3 small { margin-left: auto; }
article a { display: block; margin-top: .6rem; }
.mark { color: #fff; border-radius: 99px; padding: .05rem .65rem; font-size: .8125rem; }
.mark.reached { background: #15803d; }
.mark.missed { background: #dc2626; }
details { background: var(--card); border-radius: 10px; padding: .9rem 1rem; }
summary { cursor: pointer; }
section > h3 { margin-top: 1.4rem; }
pre { background: var(--card); border-radius: 10px; padding: .8rem 1rem; font-size: .875rem; }
.stages { width: auto; }
details h3 { margin: 1.2rem 0 .3rem; }
.keys th, .keys td { font-size: .875rem; padding-block: .25rem; }
.keys th { color: var(--muted); width: 40%; }
.keys th, .keys td { white-space: normal; overflow-wrap: anywhere; }
"""
