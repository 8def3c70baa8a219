"""What a sweep prints and draws: its table of points, the change of harm, and the picture of either."""

from __future__ import annotations

from pathlib import Path

from ....analysis.harm.changes import HarmChange
from ....analysis.harm.picture import CategoryPicture, GroupRate, draw_categories
from ....analysis.sweeping.picture import SweepPicture, degenerate_words, percent, write_picture
from ....analysis.sweeping.points import ALL, Point, Rate
from ....jobs.specs.sweep_spec import SweepSpec
from ...judging.judge_run import Judging
from ...sweeping.results import SweepResults
from ...sweeping.run import SweepOutcome
from .. import output
from ..scores.judge_options import print_judging


def draw_sweep(spec: SweepSpec, results: SweepResults, path: Path) -> None:
    """Draw a sweep: harm by group where a rubric counts it and replies are grouped, else labels against the settings.

    Args:
        spec: The sweep.
        results: What it shows.
        path: The file.

    Raises:
        InputError: It cannot be written.
    """
    model = spec.job.model.display_name
    title = f"{model}, {results.rubric} as judged by {results.judge}" if results.judge else model
    replies = sum(point.replies for point in results.points if point.group == ALL)
    notes = [f"{replies} replies; bars: Wilson intervals of 95 % over replies.", degenerate_words(results.points)]
    rates = [
        GroupRate(point.group, point.setting, point.harm.rate, point.harm.low, point.harm.high)
        for point in results.points
        if point.harm is not None
    ]
    if rates and any(point.group != ALL for point in results.points):
        notes[0] = f"Harm: {', '.join(results.harm)}. {notes[0]}"
        draw_categories(CategoryPicture(rates, title, [note for note in notes if note]), path)
    else:
        write_picture(SweepPicture(results.points, results.labels, title, [note for note in notes if note]), path)


def print_sweep(results: SweepResults, outcome: SweepOutcome, judging: Judging | None, picture: Path | None) -> None:
    """Print what a sweep shows.

    Args:
        results: What it shows.
        outcome: How its units ended.
        judging: How judging ended; None where nobody judged now.
        picture: The file of its picture; None for none.
    """
    has_groups = any(point.group != ALL for point in results.points)
    group = ["replies of"] if has_groups else []
    judged = [*results.labels, *(["harm"] if results.harm else []), "no label"] if results.labels else []
    output.table(
        f"Labels of {results.rubric}, judge {results.judge}" if results.labels else "Replies",
        ["setting", *group, "n", *judged, "repeated", "degenerate", "projection"],
        [_line(point, results, has_groups=has_groups) for point in results.points],
    )
    if results.labels:
        output.text("Shares of the replies with a label, and Wilson intervals of 95 %.")
    if results.harm:
        output.text(f"Harm: {', '.join(results.harm)}.")
    if results.axis is not None:
        output.text(f"Projection: mean at layer {results.layer} on the axis of {results.axis}, in axis sign.")
    if results.changes:
        _print_changes(results.changes, has_groups=has_groups)
    for note in (*results.notes, degenerate_words(results.points)):
        if note:
            output.text(note)
    if judging is not None:
        print_judging(results.judge or "", judging, "label")
    for name, one in outcome.outcomes.items():
        for failure in one.failures:
            output.text(f"Failed under {name}: {failure.unit_id}, {failure.message}")
    output.text(f"Units: {outcome.done} of {outcome.planned} committed")
    if picture is not None:
        output.text(f"Picture: {picture}")


def _line(point: Point, results: SweepResults, *, has_groups: bool) -> list[str]:
    missing = [str(point.unlabelled + point.waiting)] if results.labels else []
    projection = "-" if point.projection != point.projection else f"{point.projection:+.1f}"
    return [
        point.setting,
        *([point.group] if has_groups else []),
        str(point.replies),
        *(_share(rate) for rate in point.rates),
        *([] if point.harm is None else [_share(point.harm)]),
        *missing,
        percent(point.repetition),
        percent(point.degenerate),
        projection,
    ]


def _share(rate: Rate) -> str:
    return f"{percent(rate.rate)} ({rate.low:.0%}-{rate.high:.0%})"


def _print_changes(changes: tuple[HarmChange, ...], *, has_groups: bool) -> None:
    output.table(
        "Change of harm against the model as it is, over the same prompts and seeds",
        ["setting", *(["replies of"] if has_groups else []), "pairs", "before", "after", "began", "ended", "change"],
        [
            [
                one.setting,
                *([one.group] if has_groups else []),
                *map(
                    str,
                    (
                        one.change.pairs,
                        one.change.before,
                        one.change.after,
                        one.change.started,
                        one.change.ceased,
                    ),
                ),
                _change_text(one),
            ]
            for one in changes
        ],
    )
    output.text("Pairs: replies to one prompt that have a label under both. Change: rate after less rate before, in")
    output.text("percentage points, with the interval of 95 % for paired rates (Newcombe 1998, method 10).")


def _change_text(one: HarmChange) -> str:
    change = one.change
    if change.difference is None or change.low is None or change.high is None:
        return "-"
    return f"{100 * change.difference:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
