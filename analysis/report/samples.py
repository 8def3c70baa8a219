"""A few responses behind every point of the map, with what was asked and how they were scored.

One unit is read per persona, so that the report of a full catalog reads some hundred small tables, not every text.
Axes: L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.catalog import load_catalog
from ...jobs.errors import InputError
from ...storage.derived.reductions import Reduction
from ...storage.derived.scores import with_scores
from ...storage.query.run import Run
from ...storage.run.commits import PARALLEL_READS, read_commit, read_rollouts
from ..classes import at_least, score_classes

PER_PERSONA = 2
_LETTERS = {"system_prompt": 400, "question": 240, "response": 360}
"""How much of each text is kept."""

_TEXTS = ("row", *_LETTERS)
Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Sample:
    """One response, shortened.

    Attributes:
        row: Its row in the activation arrays.
        system_prompt: What the model was told; empty for no system prompt.
        question: What it was asked.
        response: What it answered.
        score: The judge's score; None without one.
        projection_L: Its projection on the axis by layer; None where it has none.
    """

    row: int
    system_prompt: str
    question: str
    response: str
    score: float | None
    projection_L: npt.NDArray[np.float64] | None


def samples_of(run: Run, reduction: Reduction) -> dict[Key, list[Sample]]:
    """Read up to two responses of every persona: the first and the middle one of a unit of which most count.

    Rollouts count by the reduction's filter, so what is shown is what the point is made of. Of a trait they are
    responses that show it.

    Args:
        run: The run.
        reduction: A reduction of it.

    Returns:
        Samples by kind and name; of a persona without a committed response there is no entry.

    Raises:
        InputError: A score of a role is out of range.
        StoreError: A committed table is missing or damaged.
    """
    index = _that_count(run, reduction)
    chosen: dict[Key, pa.Table] = {}
    for key, lines in _by_persona(index).items():
        units = lines["unit_id"].value_counts().to_pylist()
        best = min(units, key=lambda unit: (-unit["counts"], unit["values"]))["values"]
        of_unit = lines.filter(pc.field("unit_id") == best)
        places = sorted({0, of_unit.num_rows // PER_PERSONA})
        chosen[key] = of_unit.take(pa.array(places))
    if not chosen:
        return {}
    place_of: dict[int, int] = {}
    if reduction.projection_rows is not None:
        place_of = {row: place for place, row in enumerate(reduction.projection_rows.tolist())}
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        found = list(pool.map(lambda lines: _read(run, lines), chosen.values()))
    wanted = [place_of[sample.row] for samples in found for sample in samples if sample.row in place_of]
    projections = _projections(reduction, wanted)
    return {
        key: [replace(sample, projection_L=projections.get(place_of.get(sample.row, -1))) for sample in samples]
        for key, samples in zip(chosen, found, strict=True)
    }


def descriptions_of(run: Run) -> dict[Key, str]:
    """Look up the description of every persona in the catalog that the run names, if it is still there.

    Args:
        run: The run.

    Returns:
        By kind and name; empty for a run of given conversations, or where the catalog's directory is gone.
    """
    if run.record.of_conversations:
        return {}
    try:
        catalog = load_catalog(run.record.spec.personas.catalog)
        named = {(line["kind"], line["persona"]) for line in _personas(run.index)}
        known = [key for key in catalog.files if key in named]
        return {key: text for key in known if (text := catalog.persona(*key).description)}
    except InputError:
        # The catalog was a directory of another machine, or was edited since; descriptions are only an aid.
        return {}


def _personas(index: pa.Table) -> list[dict[str, str]]:
    return index.select(["kind", "persona"]).group_by(["kind", "persona"]).aggregate([]).to_pylist()


def _that_count(run: Run, reduction: Reduction) -> pa.Table:
    """Select the lines of rollouts that show their persona and count, with ``score`` where there is a judge."""
    index = run.with_vector(run.index)
    index = index.filter((pc.field("polarity") == "pos") & (pc.field("kind") != "conversation"))
    judge = reduction.facts.get("judge")
    if not judge:
        return index
    index = with_scores(run.location, index, str(judge))
    least = reduction.facts.get("min_score")
    if least is None:
        return index
    # By class as the reduction does, not by the score itself: an average of 2.6 counts as 3.
    counted = at_least(float(least))
    roles_N = np.array([kind == "role" for kind in index["kind"].to_pylist()], dtype=bool)
    counts_N = ~roles_N
    counts_N[roles_N] = [name in counted for name in score_classes(index.filter(pa.array(roles_N)))]
    return index.filter(pa.array(counts_N))


def _by_persona(index: pa.Table) -> dict[Key, pa.Table]:
    """Cut lines in address order into those of each persona."""
    if not index.num_rows:
        return {}
    kinds, names = (index[column].to_pylist() for column in ("kind", "persona"))
    keys = list(zip(kinds, names, strict=True))
    starts = [0, *(at for at in range(1, len(keys)) if keys[at] != keys[at - 1]), len(keys)]
    return {keys[a]: index.slice(a, b - a) for a, b in pairwise(starts)}


def _read(run: Run, lines: pa.Table) -> list[Sample]:
    commit = read_commit(run.location, lines["unit_id"][0].as_py())
    texts = {line["row"]: line for line in read_rollouts(run.location, commit, _TEXTS).to_pylist()}
    scores = lines["score"].to_pylist() if "score" in lines.column_names else [None] * lines.num_rows
    return [
        _sample(texts[row], score) for row, score in zip(lines["row"].to_pylist(), scores, strict=True) if row in texts
    ]


def _sample(line: dict[str, Any], score: float | None) -> Sample:
    texts = {name: _shortened(line[name], length) for name, length in _LETTERS.items()}
    return Sample(row=line["row"], score=score, projection_L=None, **texts)


def _shortened(text: str | None, length: int) -> str:
    """Cut a text at a word.

    Example:
        >>> _shortened("one two three", 9)
        'one two …'
    """
    text = (text or "").strip()
    return text if len(text) <= length else text[:length].rsplit(maxsplit=1)[0] + " …"


def _projections(reduction: Reduction, places: Sequence[int]) -> dict[int, npt.NDArray[np.float64]]:
    if reduction.projections is None:
        return {}
    values = np.asarray(reduction.projections[list(places)], dtype=np.float64)
    return dict(zip(places, values, strict=True))
