"""Scores that come from a file, each with the address of the rollout that it judges. Plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from ...jobs.errors import InputError
from ...jobs.judging.outcomes import SCALES, WhyUnscored, is_on_scale
from ...jobs.personas import Kind

_LISTED = 10
"""Wrong scores that are named."""


class ScorePlace(NamedTuple):
    """Address of the rollout that a score judges.

    Attributes:
        kind: ``role``, ``trait`` or ``default``.
        persona: Name of the persona.
        polarity: ``pos`` or ``neg``.
        prompt_index: Index of the system prompt.
        question_index: Index of the question.
        sample_index: Number of the sample; None: the file names none, and there must be one.
        turn_index: Index of the response in its conversation; None likewise.
    """

    kind: Kind
    persona: str
    polarity: str
    prompt_index: int
    question_index: int
    sample_index: int | None = None
    turn_index: int | None = None

    def __str__(self) -> str:
        text = f"{self.kind}/{self.persona}/{self.polarity}/prompt{self.prompt_index}/question{self.question_index}"
        text += "" if self.sample_index is None else f"/sample{self.sample_index}"
        return text if self.turn_index is None else f"{text}/turn{self.turn_index}"


@dataclass(frozen=True, slots=True)
class GivenScore:
    """One score of a file.

    Attributes:
        place: The rollout.
        score: The score; None where the file gives none for it.
        reason: Why there is none; None where there is one.
        file: The file that gives it.
    """

    place: ScorePlace
    score: float | None
    reason: WhyUnscored | None = None
    file: str = ""


def given_score(place: ScorePlace, value: Any, where: str, file: str, written: str = "") -> GivenScore:
    """Check one score: a number on the scale of its kind, nothing, or for a trait REFUSAL.

    Args:
        place: The rollout that it is for.
        value: The score as the file has it.
        where: Key or line of the score, for the error.
        file: The file.
        written: How the file writes the number; empty where its value says it.

    Raises:
        InputError: It is no number, off the scale, or a role's REFUSAL; names file and place.

    Example:
        >>> given_score(ScorePlace("role", "pirate", "pos", 0, 0), 3, "pos_p0_q0", "pirate.json").score
        3.0
    """
    if value == "REFUSAL" and place.kind != "trait":
        # The scale of roles has a number for it, which counts in averages and filters; without one it would not.
        raise InputError(
            f"{where} is REFUSAL, which only traits have.",
            code="bad_scores",
            file=file,
            hint="A role that refuses to answer is scored 0; leave the score empty where there is none.",
        )
    if value is None or value == "REFUSAL":
        return GivenScore(place, None, "refusal" if value else "not_given", file)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            f"{where} is {_shown(value)}, and must be a number.",
            code="bad_scores",
            file=file,
            hint=f"A score is a number{', REFUSAL,' if place.kind == 'trait' else ''} or left empty.",
        )
    # An int may be too large for a float.
    if not math.isfinite(value if abs(value) < 1e30 else math.inf) or not is_on_scale(place.kind, float(value)):
        lowest, highest = SCALES.get(place.kind, (0, 0))
        raise InputError(
            f"{where} is {written[:40] or _shown(value)}, and scores of a {place.kind} go from {lowest} to {highest}.",
            code="score_out_of_range",
            file=file,
            hint="Roles and the default have scores from 0 to 3, traits from 0 to 100.",
        )
    return GivenScore(place, float(value), None, file)


def refuse_faults(faults: Sequence[InputError], source: str) -> None:
    """Refuse scores of which some are wrong, with all that is wrong with them in one error.

    Args:
        faults: What is wrong with single scores, each with the file of it.
        source: The file or directory that was read.

    Raises:
        InputError: There are faults: it names the first ten, and how many there are.
    """
    if not faults:
        return
    if len(faults) == 1:
        raise faults[0]
    listed = [_fault_text(fault, source) for fault in faults[:_LISTED]]
    more = f"; and {len(faults) - _LISTED:,} more" if len(faults) > _LISTED else ""
    raise InputError(
        f"{len(faults):,} scores are wrong: {'; '.join(listed)}{more}. Nothing is imported.",
        code=faults[0].code,
        file=source,
        hint=faults[0].hint,
    )


def _fault_text(fault: InputError, source: str) -> str:
    text = fault.message.rstrip(".")
    return text if fault.file in (None, source) else f"{PurePath(fault.file).name}: {text}"


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)[:40]
    except (TypeError, ValueError):
        return str(value)[:40]
