"""``persona-atlas pull``: download a store from a dataset of the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import asdict

import click

from ....jobs.files.hub_url import parse_hub_url
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.locations.hub import HubLocation
from ....storage.locations.location import open_location
from ....storage.sharing.pull import pull_store
from .. import output
from ..options import access_options, endpoint_option, json_option, store_argument


@click.command()
@click.argument("hub_url", metavar="HUB_URL")
@store_argument
@endpoint_option
@access_options
@json_option
def pull(hub_url: str, store_url: str, endpoint_url: str | None, access: S3Access, as_json: bool) -> None:
    """Download the store at HUB_URL, hf://datasets/OWNER/NAME[@REVISION][/FOLDER], to STORE.

    The same command downloads what is missing. Nothing is overwritten, and every checksum is compared.
    """
    source = HubLocation(str(parse_hub_url(hub_url)))
    found = pull_store(source, open_location(store_url, endpoint_url, access), output.progress().say)
    if as_json:
        output.document(asdict(found))
        return
    output.text(
        f"Downloaded {count_of(found.downloaded, 'file')}, {output.size(found.num_bytes)}, to {found.url}; "
        f"{found.skipped:,} were there already."
    )
