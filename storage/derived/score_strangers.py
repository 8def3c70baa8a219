"""Say which part of a score's address is wrong, where no rollout of the run has it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .given_scores import ScorePlace

_SHOWN = 8
"""Valid values, or ranges of them, that are named."""


def wrong_part(place: ScorePlace, rollouts: Iterable[ScorePlace]) -> str:
    """Name the first part of an address with which no rollout is left, and the values that it may have.

    Args:
        place: The address, which is that of no rollout.
        rollouts: The addresses of the run's rollouts, with their samples and turns.

    Returns:
        A sentence without its full stop.

    Example:
        >>> wrong_part(
        ...     ScorePlace("role", "pirate", "pos", 9, 0),
        ...     [ScorePlace("role", "pirate", "pos", prompt, 0, 0) for prompt in range(5)],
        ... )
        'the role pirate (pos) has no rollout with prompt 9, only with prompts 0 to 4'
    """
    everything = list(rollouts)
    left = [one for one in everything if (one.kind, one.persona) == (place.kind, place.persona)]
    if not left:
        return _unknown_persona(place, everything)
    polarities = sorted({one.polarity for one in left})
    whose = f"the {place.kind} {place.persona}"
    if place.polarity not in polarities:
        return f"{whose} has no rollout of the polarity {place.polarity[:40]!r}, only of {' and '.join(polarities)}"
    left = [one for one in left if one.polarity == place.polarity]
    whose += f" ({place.polarity})"
    for field, noun in (
        ("prompt_index", "prompt"),
        ("question_index", "question"),
        ("sample_index", "sample"),
        ("turn_index", "turn"),
    ):
        asked = getattr(place, field)
        values = sorted({value for one in left if (value := getattr(one, field)) is not None})
        if asked is not None and asked not in values:
            return f"{whose} has no rollout with {noun} {asked}{_only(noun, values)}"
        left = [one for one in left if asked in (None, getattr(one, field))]
        whose += f" with {noun} {asked}" if field == "prompt_index" else f", {noun} {asked}"
    return f"{whose} has such a rollout"


def _unknown_persona(place: ScorePlace, rollouts: Sequence[ScorePlace]) -> str:
    text = f"the run has no {place.kind} {place.persona[:40]!r}"
    names = sorted({one.persona for one in rollouts if one.kind == place.kind})
    if names:
        text += f"; it has {', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
    others = sorted({one.kind for one in rollouts if one.persona == place.persona})
    return text + "".join(f"; its {place.persona} is a {other}" for other in others)


def _only(noun: str, values: Sequence[int]) -> str:
    if not values:
        return ""
    ranges: list[tuple[int, int]] = []
    for value in values:
        if ranges and ranges[-1][1] == value - 1:
            ranges[-1] = ranges[-1][0], value
        else:
            ranges.append((value, value))
    shown = [str(low) if low == high else f"{low} to {high}" for low, high in ranges[:_SHOWN]]
    more = " ..." if len(ranges) > _SHOWN else ""
    return f", only with {noun}{'' if len(values) == 1 else 's'} {', '.join(shown)}{more}"
