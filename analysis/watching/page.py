"""The page of scored conversations: one HTML file that loads nothing; pointing at a turn shows its text."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from ...jobs.wording import count_of
from ..report.document import LayerSlider, asset, document
from ..report.markup import DASH, buttons, section
from .scores import Scale, ScoredConversation, ScoredTurn, Watched, number

_MEASURES = (
    ("projection", "projection"),
    ("centred", "centred"),
    ("z", "z-score"),
    ("percentile", "percentile"),
)
_MOST_SAID = 160
"""Characters of a turn in the table; the panel beside the chart shows all of it."""

_DIGITS = 6
"""Significant digits of the numbers in the page; float32 activations have no more."""


def render_page(watched: Watched) -> str:
    """Render scored conversations as one HTML page.

    Args:
        watched: The conversations.
    """
    body = [_head(watched), _chart(watched), _table(watched)]
    styles = [*(asset(name) for name in ("charts.css", "page.css")), _own("watch.css")]
    scripts = [asset("base.js"), _own("watch.js")]
    slider = LayerSlider(watched.ruler.layers, 0)
    return document(f"conversations of {watched.model}", slider, "\n".join(body), _data(watched), styles, scripts)


def _own(name: str) -> str:
    return asset(name, __name__.rpartition(".")[0])


def compared_words(scale: Scale) -> str:
    """Say what projections at one layer are compared with.

    Args:
        scale: The axis at that layer.
    """
    found = scale.distribution
    if not len(found.sorted_N):
        return "There is nothing to compare with, so the number by itself means nothing; its changes do."
    of = {"rollouts": "rollout", "role vectors": "role vector"}[found.of]
    return (
        f"Compared with {count_of(len(found.sorted_N), of)} of the run behind the axis: mean {found.mean:.4g}, "
        f"standard deviation {found.std:.4g} (grey)."
    )


def _head(watched: Watched) -> str:
    axis = watched.ruler.axis
    said = {"content": "what was said", "reasoning": "what was reasoned", "all": "all that was written"}[watched.part]
    notes = "".join(f"<li class='note'>{escape(note)}</li>" for note in watched.warnings)
    return (
        f"<h1>Conversations on the Assistant Axis</h1><p class='quiet'>{escape(watched.model)} on the axis of "
        f"{escape(axis.name)}. Each point is the mean over {said} in one turn, at {escape(axis.hook_point)}. Higher is "
        f"nearer the Assistant; zero means nothing.</p>" + (f"<ul class='notes'>{notes}</ul>" if notes else "")
    )


def _chart(watched: Watched) -> str:
    has_scores = any(scale.distribution.std > 0 for scale in watched.ruler.scales)
    measures = buttons("measure", _MEASURES if has_scores else _MEASURES[:1], "projection")
    return section(
        "Turn by turn",
        f"<div class='tools'>{measures}</div><div class='with-aside'><div><figure><div class='chart' id='watch-chart' "
        "tabindex='0' aria-label='Chart of the turns: arrow keys go from turn to turn'></div></figure>"
        "<div class='talks' id='talks' role='group' aria-label='Conversations that are shown'></div>"
        "<p class='quiet' id='compared'></p></div>"
        "<aside id='chosen' aria-live='polite'></aside></div>",
    )


def _table(watched: Watched) -> str:
    rows = "".join(
        _row(talk, place, conversation, turn)
        for talk, conversation in enumerate(watched.conversations)
        for place, turn in enumerate(conversation.turns)
    )
    label = f"floor {watched.ruler.label}" if watched.ruler.label else "floor"
    heads = ("projection", "change", "centred", "z-score", "percentile")
    titles = "".join(f"<th class='number'>{title}</th>" for title in ("turn", "tokens", *heads))
    return section(
        "Every turn",
        "<div class='scroll'><table id='turns'><thead><tr><th>conversation</th><th>role</th>"
        f"{titles}<th>{escape(label)}</th><th>text</th></tr></thead><tbody>{rows}</tbody></table></div>",
    )


def _row(talk: int, place: int, conversation: ScoredConversation, turn: ScoredTurn) -> str:
    score, delta = turn.score, turn.deltas[0]
    values = (score.projection, delta, score.centred, score.z_score, score.percentile)
    cells = "".join(
        f"<td class='number at-layer'>{DASH if math.isnan(value) else f'{value:.4g}'}</td>" for value in values
    )
    below = {True: "below", False: "above", None: DASH}[score.is_below]
    flat = " ".join(turn.text.split())
    said = flat if len(flat) <= _MOST_SAID else f"{flat[:_MOST_SAID]}…"
    return (
        f"<tr data-talk='{talk}' data-turn='{place}'><td>{escape(conversation.name)}</td><td>{turn.role}</td>"
        f"<td class='number'>{turn.turn_index}</td><td class='number'>{turn.num_tokens}</td>{cells}"
        f"<td class='at-layer'>{below}</td><td class='said'>{escape(said)}</td></tr>"
    )


def _data(watched: Watched) -> dict[str, Any]:
    return {
        "layers": list(watched.ruler.layers),
        "label": watched.ruler.label or "",
        "scales": [_scale(watched, place, scale) for place, scale in enumerate(watched.ruler.scales)],
        "conversations": [
            {"name": conversation.name, "turns": [_turn(turn) for turn in conversation.turns]}
            for conversation in watched.conversations
        ],
    }


def _scale(watched: Watched, place: int, scale: Scale) -> dict[str, Any]:
    values = [turn.scores[place].projection for one in watched.conversations for turn in one.turns]
    known = [value for value in values if not math.isnan(value)]
    return {
        "mean": _short(scale.distribution.mean),
        "std": _short(scale.distribution.std),
        "floor": scale.floor,
        "floor_percentile": None if scale.floor is None else _short(scale.distribution.percentile(scale.floor)),
        "spread": _short(max(known) - min(known)) if known else None,
        "words": compared_words(scale),
    }


def _turn(turn: ScoredTurn) -> dict[str, Any]:
    at = [
        [*map(_short, (one.projection, one.centred, one.z_score, one.percentile)), one.is_below, _short(delta)]
        for one, delta in zip(turn.scores, turn.deltas, strict=True)
    ]
    found: dict[str, Any] = {"i": turn.turn_index, "role": turn.role, "text": turn.text, "tokens": turn.num_tokens}
    found["at"] = at
    if turn.tokens is not None:
        found["words"] = list(turn.tokens.texts)
        found["word_values"] = [[_short(float(value)) for value in line] for line in turn.tokens.projections_LT]
    return found


def _short(value: float) -> float | None:
    """Round to the digits that are shown at most; None for NaN."""
    return number(float(f"{value:.{_DIGITS}g}"))
