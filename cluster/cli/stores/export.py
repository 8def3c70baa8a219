"""``persona-atlas export``: write the vectors of a store to a folder, in the forms that people share."""

from __future__ import annotations

from typing import get_args

import click

from ....analysis.exchange.export import ExportFormat, export_vectors
from ....analysis.summary import summarise
from ....jobs.files.user_paths import local_path
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.query.vectors import Vectors, VectorSet, open_vectors
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument


@click.command()
@store_argument
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(ExportFormat)),
    required=True,
    help="The released files, one file with everything, or control vectors of llama.cpp and repeng.",
)
@click.option(
    "--vector",
    "wanted",
    multiple=True,
    metavar="NAME",
    help="Of gguf: axis, role:NAME or trait:NAME; repeatable; by default the axis.",
)
@endpoint_option
@reading_access_options
@json_option
def export(
    store_url: str,
    folder: str,
    form: ExportFormat,
    wanted: tuple[str, ...],
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> None:
    """Write the vectors of the current reduction of STORE to the new folder DIR.

    STORE is a run that was reduced, or a store of imported vectors.
    """
    target = local_path(folder, "DIR")
    vectors = open_vectors(store_url, endpoint_url, access)
    found = export_vectors(vectors, target, form, wanted=wanted, say=output.progress().say)
    # Whoever takes the files elsewhere sees no report.
    limits = _limits_of(vectors)
    if as_json:
        output.document(
            {
                "directory": str(found.folder),
                "format": form,
                "files": [str(path) for path in found.files],
                "bytes": found.num_bytes,
                "notes": list(found.notes),
                "trust": limits,
            }
        )
        return
    output.text(f"Wrote {count_of(len(found.files), 'file')}, {output.size(found.num_bytes)}, to {found.folder}")
    for note in (*found.notes, *limits):
        output.text(note)


def _limits_of(vectors: Vectors) -> list[str]:
    """Say what limits the trust in the axis of a run; nothing of imported vectors, of which that is not known."""
    if isinstance(vectors, VectorSet) or vectors.reduction is None:
        return []
    return list(summarise(vectors, vectors.reduction).trust)
