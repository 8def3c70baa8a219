"""``persona-atlas query``: read activations from a store into a file, or show which rollouts match."""

from __future__ import annotations

import math
from typing import Any, get_args

import click

from ....jobs.files.user_paths import local_path
from ....jobs.personas import Kind
from ....jobs.poolings import DEFAULT_POOLING
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.query.export_file import FORMATS, check_target, write_query
from ....storage.query.run import open_run
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument


@click.command()
@store_argument
@click.option("--kind", multiple=True, type=click.Choice(get_args(Kind)), help="Kind of persona; repeatable.")
@click.option("--persona", multiple=True, help="Name or glob; repeatable.")
@click.option("--polarity", type=click.Choice(["pos", "neg"]), default=None, help="Of traits: shown or opposite.")
@click.option("--prompt", multiple=True, type=int, help="Prompt index; repeatable.")
@click.option("--question", multiple=True, type=int, help="Question index; repeatable.")
@click.option(
    "--conversation", multiple=True, type=int, help="Conversation index, of runs of conversations; repeatable."
)
@click.option("--turn", multiple=True, type=int, help="Turn index, of runs of conversations; repeatable.")
@click.option("--min-tokens", type=int, default=None, help="Fewest content tokens of a response.")
@click.option("--max-tokens", type=int, default=None, help="Most content tokens of a response.")
@click.option("--min-score", type=float, default=None, help="Lowest judge score, compared without rounding.")
@click.option("--max-score", type=float, default=None, help="Highest judge score, likewise.")
@click.option("--judge", default=None, help="Name of the judge, if the run has scores of several.")
@click.option(
    "--layer", default="middle", show_default=True, help="A layer, 'middle', 'all', a list 3,5 or a range 10:20."
)
@click.option("--hook-point", default="resid_post", show_default=True, help="A captured hook point.")
@click.option(
    "--pooling", default=DEFAULT_POOLING, show_default=True, help="A captured pooling; 'tokens' is every token."
)
@click.option("--out", type=click.Path(), default=None, help=f"Write to a file: {', '.join(FORMATS)}.")
@endpoint_option
@reading_access_options
@json_option
def query(
    store_url: str,
    kind: tuple[str, ...],
    persona: tuple[str, ...],
    polarity: str | None,
    prompt: tuple[int, ...],
    question: tuple[int, ...],
    conversation: tuple[int, ...],
    turn: tuple[int, ...],
    min_tokens: int | None,
    max_tokens: int | None,
    min_score: float | None,
    max_score: float | None,
    judge: str | None,
    layer: str,
    hook_point: str,
    pooling: str,
    out: str | None,
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> None:
    """Read activations of the run at STORE: float32, one row per rollout, sorted by address.

    --out writes them to a file, with a table of their rollouts. Without it, the shape and the first rollouts are shown.
    """
    target = local_path(out, "--out") if out else None
    if target:
        check_target(target, pooling)
    run = open_run(store_url, endpoint_url, access)
    found = run.query(
        kind=kind or None,
        persona=persona or None,
        polarity=polarity,
        prompt=prompt or None,
        question=question or None,
        conversation=conversation or None,
        turn=turn or None,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        min_score=min_score,
        max_score=max_score,
        judge=judge,
        layer=layer,
        hook_point=hook_point,
        pooling=pooling,
    )
    shape = found.shape
    # A query without matches must not overwrite the file of an earlier one.
    written = write_query(found, target) if target and shape[0] else []
    document: dict[str, Any] = {
        "shape": list(shape),
        "rollouts": found.rollouts.num_rows,
        "dtype": "float32",
        "layers": list(found.layers),
        "units_done": found.completeness.done,
        "units_planned": found.completeness.planned,
        "files": [str(path) for path in written],
        "note": found.note or None,
    }
    if as_json:
        output.document(document)
        return
    if found.note:
        output.progress().say(found.note)
    output.text(f"{shape} float32, {output.size(4 * math.prod(shape))}, from {found.completeness}")
    if out and not written:
        output.text("Nothing was written.")
    for path in written:
        output.text(f"Wrote {path}")
    if not out and shape[0]:
        place = ["conversation_index", "turn_index"] if run.record.of_conversations else ["polarity", "sample_index"]
        columns = ["kind", "persona", "prompt_index", "question_index", *place, "num_content_tokens"]
        columns += ["score"] if "score" in found.rollouts.column_names else []
        lines = [[_cell(line[c]) for c in columns] for line in found.rollouts.slice(0, 10).to_pylist()]
        title = (
            f"First {len(lines)} of {count_of(found.rollouts.num_rows, 'rollout')}; --out FILE writes the activations"
        )
        output.table(title, [c.removesuffix("_index").removeprefix("num_").replace("_", " ") for c in columns], lines)


def _cell(value: Any) -> str:
    """Format a value of a line; a rollout that no judge has scored has none."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
