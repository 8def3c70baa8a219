"""How well one driver keeps many workers busy: measured on this machine, and simulated for a thousand replicas.

    python benchmarks/scale.py [--json] [--quick] [--hour] [--out FILE.html]

Measured: one and two actors of a real Ray whose engine takes a known time, with arrays as large for that time as those
of a 70B replica. Simulated: the whole of examples/llama-3.3-70b.yaml on simulated workers and nodes. A replica's time
is what `persona-atlas plan` prices it at; a third of the responses reach their limit, the others are of any length from
an eighth of it. The driver with its pool, ledger, lease, commits, index and status is the real one, on a directory, and
its own time counts. --out draws the workers' utilisation over time.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from persona_atlas.cluster.pool.session import ray_session

from _report import Report
from _scale.real_run import UNIT_S, Worked, work
from _scale.simulation import Scenario, Simulated, simulate
from _scale.utilisation import Busyness, Foreseen, busyness, draw, foreseen

MINUTE = Scenario("failures one by one", 1000, request_s=0.03)
SPOT = Scenario("a fifth of the nodes lost twice", 100, bulk_at=(0.25, 0.6), away_s=30)
HOUR = Scenario(
    "60 times as slow, a fifth of the nodes lost twice",
    1000,
    slower=60,
    bulk_at=(0.25, 0.6),
    away_s=300,
)
GB = 1e9
DEEP = 0.05
"""If the longest response is a smaller share of the job's length than this, the tail of the job is the driver's doing;
else it is that response's."""


def measured(report: Report, units_each: int) -> None:
    """Measure jobs of a known time with one actor and with two.

    Args:
        report: Receives the figures.
        units_each: Units for each actor.
    """
    with ray_session(None):
        work(1, 5)
        found = [work(workers, units_each) for workers in (1, 2)]
    rows = [_measured_row(worked) for worked in found]
    header = ("actors", "units", "seconds", "units/s", "not the engine's", "driver's processor")
    report.table(f"Real Ray, units of {UNIT_S} s", header, rows)
    one, two = found
    report.least("throughput of two actors, of twice that of one", _pace(two) / _pace(one) / 2, "ratio", 0.97)
    for worked in found:
        what = f"driver, commits and store, share of worker time, {worked.workers} actor{'s' * (worked.workers > 1)}"
        report.most(what, worked.overhead, "ratio", 0.02)


def _pace(worked: Worked) -> float:
    return worked.units / worked.wall_s


def _measured_row(worked: Worked) -> tuple[str, ...]:
    share = worked.driver_s / (worked.workers * worked.wall_s)
    return (
        str(worked.workers),
        str(worked.units),
        f"{worked.wall_s:.1f}",
        f"{_pace(worked):.2f}",
        f"{worked.overhead:.2%}",
        f"{share:.2%}",
    )


def simulated(report: Report, scenario: Scenario) -> Simulated:
    """Simulate a job and report what its driver reached.

    Args:
        report: Receives the figures.
        scenario: The job, and what is lost.
    """
    report.say(f"Simulating {scenario}.")
    found = simulate(scenario)
    busy, best = busyness(found), foreseen(found)
    name = str(scenario)
    report.table(name, ("", ""), _simulated_rows(found, busy, best))
    is_deep = found.rollout_s < DEEP * found.length_s
    report.least(f"busy while there is work, all workers: {name}", busy.mean, "ratio", 0.98)
    report.least(f"busy while there is work, the worst worker: {name}", busy.least, "ratio", 0.98)
    report.most(
        f"idle after the last unit was assigned, share of worker time: {name}",
        busy.idle_at_end,
        "ratio",
        0.02 if is_deep else None,
    )
    more = found.length_s / best.length_s - 1
    # A scheduler that foresees losses assigns nothing to workers that will be lost: in a job of few batches that alone
    # is worth one batch.
    limit = 0.02 if is_deep or not found.nodes_lost else None
    report.most(f"longer than a schedule that foresees all, share of its length: {name}", more, "ratio", limit)
    report.most(f"the driver's memory: {name}", found.peak_bytes / GB, "GB", 1.0)
    report.least(f"every unit is committed exactly once: {name}", float(found.once), "yes", 1.0)
    return found


def _simulated_rows(found: Simulated, busy: Busyness, best: Foreseen) -> list[tuple[str, str]]:
    single = sum(1 for _, number in found.nodes_lost if number == 1)
    bulk = [str(number) for _, number in found.nodes_lost if number > 1]
    return [
        ("units, workers ever there, nodes", f"{found.units:,}, {len(found.ready_at):,}, {found.nodes:,}"),
        ("nodes lost one by one; at once", f"{single}; {', '.join(bulk) or 'none'}"),
        ("units in flight on them, done again", f"{found.units_lost:,}"),
        ("length; if everything were foreseen", f"{found.length_s:,.1f} s; {best.length_s:,.1f} s"),
        ("idle at the end; if everything were foreseen", f"{busy.idle_at_end:.1%}; {best.idle_at_end:.1%}"),
        ("last unit assigned; first worker idle for good", f"{found.assigned_s:,.1f} s; tail of {busy.tail:.1%}"),
        ("slots of batches taken till then", f"{busy.full:.1%}"),
        ("driver's processor time", f"{found.driver_s:.1f} s, {1e3 * found.driver_s / found.units:.2f} ms a unit"),
        ("time skipped; the simulation's own", f"{found.skipped_s:,.1f} s; {found.stopped_s:.1f} s"),
        ("index written after the last commit", f"{found.index_s:.1f} s"),
    ]


def main() -> int:
    """Measure and simulate; exit status 1 when a floor does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--quick", action="store_true", help="a tenth of the simulated units and of the workers")
    parser.add_argument("--hour", action="store_true", help="a job of an hour too, so that single nodes fail")
    parser.add_argument("--out", type=Path, help="HTML file to draw utilisation into, with a PNG beside it")
    asked = parser.parse_args()
    report = Report(asked.json)
    measured(report, 30 if asked.quick else 50)
    scenarios = [MINUTE, SPOT, HOUR] if asked.hour else [MINUTE, SPOT]
    if asked.quick:
        scenarios = [replace(s, workers=s.workers // 10, questions=24) for s in scenarios]
    found = {str(scenario): simulated(report, scenario) for scenario in scenarios}
    if asked.out is not None:
        report.say(f"Drawn: {draw(found, asked.out) or asked.out}.")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
