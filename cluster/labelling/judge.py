"""Label replies by a rubric: what is left of all runs, in one queue, by one judge."""

from __future__ import annotations

from contextlib import closing

from ...jobs.errors import InputError
from ...jobs.judging.costs import Spending
from ...jobs.judging.queue import JudgingQueue
from ...jobs.judging.rubrics import Rubric
from ...storage.derived.verdicts import read_verdict_record, verdict_judges, write_verdict_record
from ...storage.format.judge_record import JudgeRecord
from ...storage.locations.location import Location
from ..judging.judge_run import JudgeSettings, Judging, agreed_record, ask, judging_of, open_judge, saying_what_is_kept
from ..run.progress import Progress
from .replies import RepliesToLabel


def label_replies(to_label: RepliesToLabel, settings: JudgeSettings, progress: Progress) -> Judging:
    """Label the replies that are left, and keep each unit's verdicts as soon as it has all.

    Args:
        to_label: The replies.
        settings: The judge and its limits.
        progress: Shows how far it is.

    Returns:
        How it ended; ``scored`` counts the replies that got a label. Check ``left``.

    Raises:
        InputError: The judge is wrong, or its name belongs to another judge or another text of the rubric.
        StoreError: Texts or verdicts are damaged.
        KeyboardInterrupt: It was stopped; what was judged is kept.
    """
    spending = Spending(settings.prices, settings.max_usd, settings.max_tokens)
    location, rubric = to_label.location, to_label.rubric
    record_to_keep(location, rubric, settings)
    queue = JudgingQueue(to_label.units(), spending)
    num_left = to_label.num_replies - to_label.num_done
    if num_left and queue.may_begin():
        with saying_what_is_kept(queue, progress), closing(open_judge(settings, progress)) as judge:
            # Compared once more: opening a judge takes long, and another may have taken the name meanwhile.
            write_verdict_record(location, rubric.name, record_to_keep(location, rubric, settings))
            ask(judge, queue, num_left, to_label.write, progress)
    return judging_of(queue, spending, to_label.num_replies, to_label.num_done)


def record_to_keep(location: Location, rubric: Rubric, settings: JudgeSettings) -> JudgeRecord:
    """Compare a judge with the one that has its name, and return the record of both.

    Args:
        location: Where verdicts are kept.
        rubric: The rubric.
        settings: The judge.

    Raises:
        InputError: Another judge has the name, or the rubric of that name has another text by now.
        StoreError: The record is damaged.
    """
    asked = settings.record({rubric.name: rubric.digest})
    known = read_verdict_record(location, rubric.name, settings.name)
    return asked if known is None else agreed_record(known, asked)


def judge_to_show(location: Location, rubric: Rubric, named: str | None, what: str) -> str | None:
    """Return the judge whose labels are counted where none is asked to judge: the one that is named, or the only one.

    Args:
        location: Where verdicts are kept.
        rubric: The rubric.
        named: The name that the user gave; None for none.
        what: What was judged, for errors, such as ``sweep``.

    Returns:
        Its name; None where nobody has judged.

    Raises:
        InputError: Nobody of that name has judged, several have and none is named, or its labels are those of another
            text of the rubric.
        StoreError: The record of the judge is damaged.
    """
    known = verdict_judges(location, rubric.name)
    if named is not None and named not in known:
        raise InputError(
            f"no judge {named!r} has judged this {what} by {rubric.name}.",
            code="no_such_judge",
            field="--judge",
            hint=f"There are {', '.join(known)}." if known else "Name a model that judges: --model.",
        )
    if named is None and len(known) > 1:
        raise InputError(
            f"several judges have judged the {what}.",
            code="which_judge",
            field="--judge",
            hint=f"Name {', '.join(known)}.",
        )
    shown = named or next(iter(known), None)
    record = None if shown is None else read_verdict_record(location, rubric.name, shown)
    if record is not None and record.rubrics.get(rubric.name, rubric.digest) != rubric.digest:
        raise InputError(
            f"the judge {shown!r} has judged this {what} by another rubric of the name {rubric.name}.",
            code="other_rubric",
            field="--judge",
            hint="Name the file of the rubric that it judged by, or judge anew: --model, and another --judge.",
        )
    return shown
