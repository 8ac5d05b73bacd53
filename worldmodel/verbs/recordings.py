"""collect, inspect, convert, transcode: making, reading and rewriting recordings."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from worldmodel.verbs.shared import Call, check_backends, open_folder, open_recordings

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from worldmodel.data.checks.findings import Finding
    from worldmodel.data.source import Source
    from worldmodel.data.validate import CheckReport


def collect(config: "DictConfig", *, call: Call) -> int:
    """Records episodes in simulation."""
    from worldmodel.data.collect import collect

    check_backends(*config.backends)
    print(f"writing to {config.out}", flush=True)
    result = collect(
        config.out,
        episodes=config.episodes,
        tasks=None if config.tasks is None else dict(config.tasks),
        steps=config.steps,
        behaviours=None if config.behaviours is None else dict(config.behaviours),
        variations=None if config.variations is None else dict(config.variations),
        seed=config.seed,
        image_size=config.image_size,
        cameras=tuple(config.cameras),
        backends=tuple(config.backends),
        workers=config.workers,
        start_index=config.start_index,
    )
    print(
        f"{result.collected} episodes recorded, {result.found} were there already "
        f"({result.steps_per_second:.0f} steps/s); next: worldmodel inspect {config.out}"
    )
    return 0


def inspect(config: "DictConfig", *, call: Call) -> int:
    """Says what recordings hold and checks them; status 1 if a check found errors."""
    from worldmodel.data.inspect import contact_sheet, path_figure, summarise

    source = open_recordings(config)
    run = open_folder("inspect", config)
    if call.json_to is None:
        print(summarise(source))
        contact_sheet(source, run / "contact_sheet.png")
        path_figure(source, run / "motion.png")
        print(f"look at {run / 'contact_sheet.png'} and {run / 'motion.png'}")
    if config.check or call.json_to is not None:
        return _check(source, run, json_to=call.json_to)
    print(f"{len(source)} episodes; next: the same command with --check")
    return 0


def _check(source: "Source", run: Path, *, json_to: TextIO | None) -> int:
    from worldmodel.data.check_page import write_check_page
    from worldmodel.data.validate import check

    report = check(source)
    (run / "check.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
    write_check_page(report, source, run / "check.html")
    if json_to is not None:
        print(json.dumps(report.to_json()), file=json_to)
    else:
        _print_findings(report)
        print(f"look at {run / 'check.html'}")
        if report.quarantined:
            print(f"training leaves out {len(report.quarantined)} episodes with errors")
        counts = {
            severity: sum(finding.severity == severity for finding in report.findings)
            for severity in ("error", "warning")
        }
        print(f"{report.episodes} episodes, {counts['error']} errors, {counts['warning']} warnings")
    return 1 if any(finding.severity == "error" for finding in report.findings) else 0


def _print_findings(report: "CheckReport") -> None:
    """Prints one paragraph per code and severity: how often, the first cases, what to do."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.findings:
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    for severity in ("error", "warning", "info"):
        for (level, code), found in groups.items():
            if level != severity:
                continue
            print(f"\n{severity}: {code} ({len(found)})")
            for finding in found[:3]:
                place = "the set" if finding.episode is None else f"episode {finding.episode}"
                step = "" if finding.step is None else f", step {finding.step}"
                print(f"  {place}{step}: {finding.message}")
            if len(found) > 3:
                print(f"  ... and {len(found) - 3} more")
            print(f"  why: {found[0].why}\n  do:  {found[0].fix}")
    print()


def convert(config: "DictConfig", *, call: Call) -> int:
    """Writes recordings as another format."""
    from worldmodel.data.convert import convert

    source = open_recordings(config)
    print(f"writing to {config.out}", flush=True)
    result = convert(
        source,
        config.out,
        format=config.to,
        image_size=None if config.image_size is None else tuple(config.image_size),
        cameras=None if config.cameras is None else tuple(config.cameras),
    )
    for episode, reason in result.quarantined.items():
        print(f"left out: episode {episode}: {reason}")
    print(
        f"{result.converted} episodes converted, {result.found} were there already, "
        f"{len(result.quarantined)} left out; next: worldmodel inspect {config.out}"
    )
    return 0


def transcode(config: "DictConfig", *, call: Call) -> int:
    """Re-encodes videos; status 1 if one could not be."""
    from worldmodel.data.transcode import transcode

    print(f"writing to {config.out}", flush=True)
    result = transcode(
        config.data,
        config.out,
        height=config.height,
        width=config.width,
        hz=config.hz,
        gop=config.gop,
        crf=config.crf,
        workers=config.workers,
    )
    for file, reason in result.failed:
        print(f"left out: {file}: {reason}")
    if result.header_rates:
        rates = ", ".join(f"{rate:g}" for rate in result.header_rates)
        print(f"rates taken over from headers: {rates} Hz; if they are not true, say hz=...")
    print(
        f"{len(result.done)} videos transcoded, {len(result.skipped)} were there already, "
        f"{len(result.failed)} left out"
    )
    return 1 if result.failed else 0
