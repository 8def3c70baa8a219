"""What a query asks for: which rollouts, which layers. Pure; works on the index table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.compute as pc

from ..jobs.errors import InputError

Names = str | Sequence[str] | None
Indices = int | Sequence[int] | None
Layers = int | str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters on rollouts; None lets everything through. Names may be globs.

    Attributes:
        kind: ``role``, ``trait``, ``default``.
        persona: Names or globs such as ``p*``.
        polarity: ``pos`` or ``neg``.
        prompt: Prompt indices.
        question: Question indices.
        min_tokens: Least number of content tokens in the response.
    """

    kind: Names = None
    persona: Names = None
    polarity: Names = None
    prompt: Indices = None
    question: Indices = None
    min_tokens: int | None = None

    def apply(self, index: pa.Table) -> pa.Table:
        """Keep the matching lines of an index table, in its order."""
        for column, names in (("kind", self.kind), ("persona", self.persona), ("polarity", self.polarity)):
            if names is not None:
                patterns = [names] if isinstance(names, str) else list(names)
                known = index[column].unique().to_pylist()
                matched = [n for n in known if any(fnmatchcase(n, pattern) for pattern in patterns)]
                index = index.filter(pc.field(column).isin(pa.array(matched, pa.string())))
        for column, numbers in (("prompt_index", self.prompt), ("question_index", self.question)):
            if numbers is not None:
                wanted = [numbers] if isinstance(numbers, int) else list(numbers)
                index = index.filter(pc.field(column).isin(pa.array(wanted, pa.int64())))
        if self.min_tokens is not None:
            index = index.filter(pc.field("num_content_tokens") >= self.min_tokens)
        return index


def layer_positions(asked: Layers, captured: Sequence[int], n_layers: int) -> list[int]:
    """Turn asked layers into positions among the captured ones.

    Args:
        asked: A 0-based block, several, ``middle`` (block n_layers // 2), ``all``, or a text such as ``3``,
            ``3,5`` or ``10:20`` (end exclusive).
        captured: The blocks that the store holds, in its order.
        n_layers: Blocks of the model.

    Raises:
        InputError: A layer that was not captured, or a text that names none.

    Example:
        >>> layer_positions("2:4", captured=[0, 1, 2, 3], n_layers=4)
        [2, 3]
    """
    layers = _parse_layers(asked, captured, n_layers) if isinstance(asked, str) else asked
    wanted = [layers] if isinstance(layers, int) else list(layers)
    missing = [layer for layer in wanted if layer not in captured]
    if missing or not wanted:
        span = f"{captured[0]} to {captured[-1]}" if len(captured) > 1 else str(captured[0])
        raise InputError(
            f"layer {missing[0]} was not captured." if missing else f"{asked!r} names no layer.",
            code="no_such_layer",
            field="layer",
            mend=f"The run holds {len(captured)} layers: {span}.",
        )
    return [list(captured).index(layer) for layer in wanted]


def is_single_layer(asked: Layers) -> bool:
    """Whether the asker wants one layer, and so an array without a layer axis."""
    return isinstance(asked, int) or (isinstance(asked, str) and (asked == "middle" or asked.isdecimal()))


def _parse_layers(text: str, captured: Sequence[int], n_layers: int) -> int | list[int]:
    if text == "all":
        return list(captured)
    if text == "middle":
        return n_layers // 2
    try:
        if ":" in text:
            start, stop = text.split(":")
            return list(range(int(start or 0), int(stop or n_layers)))
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{text!r} is not a layer.",
            code="bad_layer",
            field="layer",
            mend="Give a number, 'middle', 'all', a list such as 3,5 or a range such as 10:20.",
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers
