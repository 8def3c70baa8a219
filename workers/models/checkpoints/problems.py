"""What keeps a checkpoint from being used, collected so that everything that is wrong is reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....jobs.errors import InputError

_FIELD = "model.source"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that keeps a checkpoint from being used.

    Attributes:
        text: What is wrong, beginning with the name of the file; without a full stop.
        hint: What the user can do about it, as a sentence.
        code: Stable word for the cause.
    """

    text: str
    hint: str
    code: str = "no_model"


def refuse(place: str, problems: Sequence[Problem]) -> None:
    """Raise one error for all problems of a checkpoint; do nothing if there are none.

    Args:
        place: Directory or Hugging Face id of the checkpoint.
        problems: What is wrong with it.

    Raises:
        InputError: There is a problem; the code is that of the first.
    """
    if not problems:
        return
    hints = " ".join(dict.fromkeys(problem.hint for problem in problems))
    texts = "; ".join(problem.text for problem in problems)
    raise InputError(f"{place} cannot be used: {texts}.", code=problems[0].code, field=_FIELD, hint=hints)
