"""Openings of text as dialogues of one turn, each of which a model completes."""

from __future__ import annotations

from ..dialogues.prefills import base_prefills
from ..specs.texts_spec import PrefillsSpec
from .dialogue_source import Dialogue


def read_prefills(section: PrefillsSpec) -> tuple[Dialogue, ...]:
    """Read the openings that a spec names.

    Args:
        section: The section ``prefills``.

    Returns:
        A dialogue for every completion: kind ``conversation``, persona the group, question_index the place of the
        opening in the file.

    Raises:
        InputError: The file is missing or invalid; names file, line and field.

    Example:
        >>> first = read_prefills(PrefillsSpec(samples=2))[1]
        >>> first.persona, first.turns, first.question_index, first.sample_index, first.conversation_index
        ('job', ('My job is to',), 0, 1, 1)
    """
    return tuple(
        Dialogue(
            kind="conversation",
            persona=prefill.group,
            prompt_index=0,
            question_index=place,
            conversation_index=place * section.samples + sample,
            system_prompt="",
            turns=(prefill.text,),
            sample_index=sample,
            place=f"{section.source}, opening {place}",
        )
        for place, prefill in enumerate(base_prefills(section.source))
        for sample in range(section.samples)
    )
