"""``persona-atlas push``: upload a store to a dataset of the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_args

import click

from ....jobs.files.hub_url import parse_hub_url
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.query.vectors import open_vectors
from ....storage.sharing.objects import Share
from ....storage.sharing.push import push_store
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, store_argument


@click.command()
@store_argument
@click.argument("hub_url", metavar="HUB_URL")
@click.option(
    "--only",
    "share",
    type=click.Choice(get_args(Share)),
    default="vectors",
    show_default=True,
    help="The vectors with their record and index, or everything: activations and texts too.",
)
@click.option("--public", is_flag=True, help="Make a dataset that is created public; otherwise it is private.")
@endpoint_option
@reading_access_options
@json_option
def push(
    store_url: str, hub_url: str, share: Share, public: bool, endpoint_url: str | None, access: S3Access, as_json: bool
) -> None:
    """Upload STORE to the dataset HUB_URL: hf://datasets/OWNER/NAME, with /FOLDER for one of several stores in it.

    The dataset is created if it does not exist. The same command uploads what is missing, and nothing that is there
    already. The token is that of HF_TOKEN, or of hf auth login.
    """
    target = parse_hub_url(hub_url)
    vectors = open_vectors(store_url, endpoint_url, access)
    found = push_store(vectors, target, share, public=public, say=output.progress().say)
    if as_json:
        output.document(asdict(found))
        return
    output.text(
        f"Uploaded {count_of(found.uploaded, 'file')}, {output.size(found.num_bytes)}, to {found.url}; "
        f"{found.skipped:,} were there already."
    )
