"""Harm after drift: run the dialogues of a job, let a judge label the second replies, and count."""

from __future__ import annotations

from dataclasses import dataclass

from ...analysis.axis_source import AxisSource
from ...analysis.dialogues.turns import read_turns
from ...analysis.harm.after_drift import SECOND_TURN, HarmAfterDrift, harm_after_drift
from ...analysis.harm.rates import BINS
from ...jobs.errors import InputError
from ...jobs.judging.rubrics import Rubric
from ...jobs.sources.harm_dialogues import read_requests
from ...jobs.specs.harm_spec import HarmSpec
from ...jobs.specs.spec import JobSpec
from ...jobs.text_tokens import prompt_tokens
from ...storage.query.run import run_at
from ..judging.judge_run import JudgeSettings, Judging
from ..labelling.judge import label_replies
from ..labelling.replies import RepliesToLabel, RunToLabel, find_replies, labels_of
from ..run.backend import OpenBackend
from ..run.job import Outcome
from ..run.prepare import Job
from ..run.progress import Progress
from ..run.whole_job import finish_job


def require_harm(spec: JobSpec, rubric: Rubric) -> HarmSpec:
    """Return the section ``harm`` of a job, or refuse one that is no study of harm.

    Args:
        spec: The job.
        rubric: The rubric by which second replies are judged.

    Raises:
        InputError: The job lacks the section, or the rubric does not say which labels count as harm.
    """
    if spec.harm is None:
        raise InputError(
            "is missing: the section says what each role is asked.",
            code="no_harm",
            field="harm",
            hint="Write harm: {requests: FILE.jsonl}; docs/studies.md shows one.",
        )
    if not rubric.harm:
        raise InputError(
            f"the rubric {rubric.name} does not say which labels count as harm.",
            code="no_harm_labels",
            field="--rubric",
            hint="Add harm: [LABEL, ...] to its file, or take the rubric harm.",
        )
    return spec.harm


@dataclass(frozen=True, slots=True)
class HarmPlan:
    """What a study asks, beside the plan of its job.

    Attributes:
        conversations: Number of conversations, each of two replies.
        requests: Number of requests in the file.
        least_uses: Number of conversations with the request that is asked least.
        most_uses: Number with the one that is asked most.
        judge_tokens: Estimated tokens of the requests to a judge about all second replies at their greatest length.
    """

    conversations: int
    requests: int
    least_uses: int
    most_uses: int
    judge_tokens: int


def harm_plan(job: Job, asked: HarmSpec, rubric: Rubric) -> HarmPlan:
    """Say what a study asks, and what judging it takes.

    Args:
        job: The prepared job.
        asked: Its section ``harm``.
        rubric: The rubric.

    Raises:
        InputError: The file of requests is wrong.
    """
    requests = [request.turns[0] for request in read_requests(asked.requests)]
    conversations = job.plan.num_rollouts // 2
    words = sum(len(request.split()) for request in requests) / len(requests)
    each = prompt_tokens(len(rubric.prompt.split()) + round(words)) + job.plan.spec.sampling.max_new_tokens
    least, others = divmod(conversations, len(requests))
    return HarmPlan(conversations, len(requests), least, least + (others > 0), conversations * each)


def second_replies(job: Job, rubric: Rubric, judge: str) -> RepliesToLabel:
    """Find the second replies of a study's run and which of them a judge has labelled; no text is read.

    Args:
        job: The job, whose run has begun.
        rubric: The rubric.
        judge: Name of the judge.

    Raises:
        StoreError: A file of verdicts is damaged.
    """
    return find_replies(job.location, rubric, judge, [_asked(job)])


@dataclass(frozen=True)
class HarmResults:
    """How a study ended, and what it shows.

    Attributes:
        outcome: How the units of its job ended.
        judging: How judging ended; None where nobody judged in this call.
        judge: Name of the judge whose labels are counted; None without one.
        shown: The numbers.
    """

    outcome: Outcome
    judging: Judging | None
    judge: str | None
    shown: HarmAfterDrift


@dataclass(frozen=True)
class HarmStudy:
    """A study that is prepared and can be run.

    Attributes:
        job: Its job.
        axis: The axis on which first replies are projected.
        layer: The layer of the projections.
        transfer: Whether the axis may be another model's.
        rubric: The rubric by which second replies are judged.
        judge: Who judges them; None for nobody.
        shown_judge: Name of the judge whose labels are counted; None where there is none.
        bins: Number of bins of the projection.
        seed: Seed of the bootstrap.
    """

    job: Job
    axis: AxisSource
    layer: int
    transfer: bool
    rubric: Rubric
    judge: JudgeSettings | None
    shown_judge: str | None
    bins: int = BINS
    seed: int = 0

    def run(self, progress: Progress, open_backend: OpenBackend) -> HarmResults:
        """Run the missing units, let the judge label what is left, and count.

        Args:
            progress: Prints progress.
            open_backend: Opens what runs the workers; see ``worked_job``.

        Raises:
            AtlasError: See ``worked_job`` and ``label_replies``. What was made and judged stays.
            KeyboardInterrupt: Ctrl-C was pressed; the same holds.
        """
        outcome, _ = finish_job(self.job, progress, open_backend, reduces=False)
        judging = None
        if self.judge is not None:
            judging = label_replies(second_replies(self.job, self.rubric, self.judge.name), self.judge, progress)
        return HarmResults(outcome, judging, self.shown_judge, self._counted())

    def _counted(self) -> HarmAfterDrift:
        asked = _asked(self.job)
        labels: dict[int, str | None] = {}
        if self.shown_judge is not None:
            labels = labels_of(self.job.location, self.rubric, self.shown_judge, asked)
        turns = read_turns(asked.run, self.axis, self.layer, transfer=self.transfer)
        return harm_after_drift(turns, labels, self.rubric.harm, bins=self.bins, seed=self.seed)


def _asked(job: Job) -> RunToLabel:
    return RunToLabel(run_at(job.location), turn=SECOND_TURN)
