"""``persona-atlas import``: read vectors that others share into a store of their own."""

from __future__ import annotations

import click

from ....analysis.exchange.read_directory import import_directory
from ....jobs.files.user_paths import local_path
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.locations.location import open_location
from .. import output
from ..options import access_options, endpoint_option, json_option, store_argument


@click.command("import")
@click.argument("source", metavar="DIR", type=click.Path())
@store_argument
@click.option("--model", default=None, metavar="NAME", help="The vectors' model, where the files do not name it.")
@endpoint_option
@access_options
@json_option
def import_vectors(
    source: str, store_url: str, model: str | None, endpoint_url: str | None, access: S3Access, as_json: bool
) -> None:
    """Read the vectors in the folder DIR into the new store STORE, which show, report and export then read.

    DIR is a released directory of the Assistant Axis, a safetensors export, or holds GGUF control vectors. Only tensors
    are read: no code of a pickle is run.
    """
    path = local_path(source, "DIR")
    location = open_location(store_url, endpoint_url, access)
    record = import_directory(path, location, model, output.progress().say)
    if as_json:
        output.document(
            {
                "store": location.url,
                "model": record.model,
                "n_layers": record.n_layers,
                "d_model": record.d_model,
                "source": record.source,
                "files": len(record.files),
                "notes": list(record.notes),
            }
        )
        return
    output.text(
        f"Imported {count_of(len(record.files), 'file')} of {record.model} ({count_of(record.n_layers, 'layer')} x "
        f"{record.d_model}) to {location.url}"
    )
    for note in record.notes:
        output.text(note)
