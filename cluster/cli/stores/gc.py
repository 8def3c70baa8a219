"""``persona-atlas gc``: delete objects of attempts that were never committed."""

from __future__ import annotations

import sys
from typing import Any

import click

from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.query.run import open_run
from ....storage.run.commits import read_commits
from ....storage.run.lease import refuse_if_driven
from ....storage.verification.garbage import GarbageObject, find_garbage, remove_garbage
from .. import output
from ..options import access_options, endpoint_option, json_option, store_argument

_MAX_LINES = 20


@click.command()
@store_argument
@click.option("--yes", is_flag=True, help="Delete without asking.")
@endpoint_option
@access_options
@json_option
def gc(store_url: str, yes: bool, endpoint_url: str | None, access: S3Access, as_json: bool) -> None:
    """List objects that no commit of the run at STORE can ever refer to, and delete them.

    Asks before it deletes. Without a terminal, or with --json, it only lists them unless --yes is given. --yes also
    rewrites the index from the commit records. Refused while a driver is working on the run.
    """
    run = open_run(store_url, endpoint_url, access)
    refuse_if_driven(run.location)
    manifests = [commit.manifest for commit in read_commits(run.location, sorted(run.committed))]
    dead = find_garbage(run.location, manifests, is_complete=run.completeness.is_complete)
    removable = [found for found in dead if found.is_removable]
    if not as_json:
        _print(dead, removable)
    deleted = 0
    if yes or (removable and not as_json and _is_confirmed(len(removable))):
        deleted = remove_garbage(run.location, run.record, removable)
    if as_json:
        output.document(_as_dict(dead, removable, deleted))
    elif deleted:
        output.text(f"Deleted {count_of(deleted, 'object')}.")
    elif removable:
        output.text("Nothing was deleted; --yes deletes.")


def _is_confirmed(count: int) -> bool:
    return sys.stdin.isatty() and click.confirm(f"Delete {count_of(count, 'object')}?", err=True)


def _print(dead: list[GarbageObject], removable: list[GarbageObject]) -> None:
    if not dead:
        output.text("No garbage.")
        return
    lines = [[found.path, output.size(found.num_bytes), found.unit_id or ""] for found in removable[:_MAX_LINES]]
    if lines:
        total = output.size(sum(found.num_bytes for found in removable))
        more = f", the first {_MAX_LINES}" if len(removable) > _MAX_LINES else ""
        output.table(f"{count_of(len(removable), 'dead object')}, {total}{more}", ["object", "size", "unit"], lines)
    kept = len(dead) - len(removable)
    if kept:
        output.text(f"{count_of(kept, 'more object')} kept: units that are not committed yet may still need them.")


def _as_dict(dead: list[GarbageObject], removable: list[GarbageObject], deleted: int) -> dict[str, Any]:
    return {
        "removable": [{"path": found.path, "bytes": found.num_bytes, "unit_id": found.unit_id} for found in removable],
        "removable_bytes": sum(found.num_bytes for found in removable),
        "kept": len(dead) - len(removable),
        "deleted": deleted,
    }
