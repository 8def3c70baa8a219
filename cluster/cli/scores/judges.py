"""``persona-atlas judges``: the judges of a run, their scores, and how far they agree."""

from __future__ import annotations

import click

from ....analysis.judges.agreement import BINS, Agreement
from ....analysis.judges.judge_overview import JudgeOverview, PairOverview, judge_overviews, pair_overviews
from ....jobs.personas import Kind
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.query.run import open_run
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument


@click.command()
@store_argument
@click.option("--judge", "names", multiple=True, metavar="NAME", help="Only this judge; repeatable.")
@endpoint_option
@reading_access_options
@json_option
def judges(store_url: str, names: tuple[str, ...], endpoint_url: str | None, access: S3Access, as_json: bool) -> None:
    """Show the judges of the run at STORE: what they have scored, and how far every two of them agree."""
    run = open_run(store_url, endpoint_url, access)
    found = judge_overviews(run, names)
    pairs = pair_overviews(found)
    if as_json:
        document = {"judges": [one.as_dict() for one in found], "agreement": [pair.as_dict() for pair in pairs]}
        output.document(document)
        return
    if not found:
        output.text("No judge has scored this run. persona-atlas judge and scores import do.")
        return
    columns = ["judge", "model", "scored", "of", "unscored", "left"]
    output.table("Judges", columns, [_line(one) for one in found], keep_first=True)
    for one in found:
        _print_scores(one)
    for pair in pairs:
        _print_pair(pair)


def _line(one: JudgeOverview) -> list[str]:
    what = "unknown" if one.record is None else one.record.model or f"imported from {', '.join(one.record.files)}"
    return [one.name, what, *(f"{number:,}" for number in (one.scored, one.rollouts, one.unscored, one.left))]


def _print_scores(one: JudgeOverview) -> None:
    for kind, counts in one.distribution.items():
        shown = ", ".join(f"{label}: {count:,}" for label, count in counts.items())
        output.text(f"{one.name}, scores of {kind}s: {shown}")
    if one.reasons:
        shown = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in one.reasons.items())
        output.text(f"{one.name}, without a score: {shown}")


def _print_pair(pair: PairOverview) -> None:
    first, second = pair.judges
    if not pair.by_kind:
        output.text(f"{first} and {second} have scored no rollout in common.")
    for kind, found in pair.by_kind.items():
        output.text(
            f"{first} and {second}, {count_of(found.rollouts, f'{kind} rollout')} in common: weighted kappa "
            f"{_number(found.weighted_kappa)}, correlation {_number(found.correlation)}, mean absolute difference "
            f"{_number(found.mean_absolute_difference)}"
        )
        _print_confusion(pair, kind, found)


def _print_confusion(pair: PairOverview, kind: Kind, found: Agreement) -> None:
    first, second = pair.judges
    # A category is named by its lowest score, and left out if neither judge has given one of it.
    used = [c for c in range(len(BINS[kind])) if found.confusion[c].any() or found.confusion[:, c].any()]
    labels = [BINS[kind][c].partition("-")[0] for c in used]
    counts = found.confusion[used][:, used].tolist()
    lines = [[label, *map(str, row)] for label, row in zip(labels, counts, strict=True)]
    output.table(f"{kind.capitalize()}s by score of {first} (down) and {second} (across)", ["", *labels], lines)


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else "undefined"
