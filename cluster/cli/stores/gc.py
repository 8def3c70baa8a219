"""``persona-atlas gc``: delete what attempts that do not count have left behind."""

from __future__ import annotations

import sys
from typing import Any

import click

from ....storage.query.run import open_run
from ....storage.run.commits import read_commits
from ....storage.run.lease import refuse_if_driven
from ....storage.verification.garbage import GarbageObject, find_garbage, remove_garbage
from .. import output
from ..options import endpoint_option, json_option, store_argument

_SHOWN = 20


@click.command()
@store_argument
@click.option("--yes", is_flag=True, help="Delete without asking.")
@endpoint_option
@json_option
def gc(store_url: str, yes: bool, endpoint_url: str | None, as_json: bool) -> None:
    """Show what no commit of the run at STORE can ever name, and delete it when told to.

    Asks before it deletes; without a terminal, or with --json, it only shows unless --yes is given. With --yes the
    index is written anew from the commits, too. Refused while a driver works on the run.
    """
    run = open_run(store_url, endpoint_url)
    refuse_if_driven(run.location)
    manifests = [commit.manifest for commit in read_commits(run.location, sorted(run.committed))]
    dead = find_garbage(run.location, manifests, is_complete=run.completeness.is_complete)
    removable = [thing for thing in dead if thing.is_removable]
    if not as_json:
        _print(dead, removable)
    deleted = 0
    if yes or (removable and not as_json and _agreed(len(removable))):
        deleted = remove_garbage(run.location, run.record, removable)
    if as_json:
        output.document(_as_dict(dead, removable, deleted))
    elif deleted:
        output.text(f"Deleted {deleted} objects.")
    elif removable:
        output.text("Nothing was deleted; --yes deletes.")


def _agreed(count: int) -> bool:
    return sys.stdin.isatty() and click.confirm(f"Delete these {count} objects?", err=True)


def _print(dead: list[GarbageObject], removable: list[GarbageObject]) -> None:
    if not dead:
        output.text("Nothing is dead.")
        return
    lines = [[thing.path, output.size(thing.num_bytes), thing.unit_id or ""] for thing in removable[:_SHOWN]]
    if lines:
        total = output.size(sum(thing.num_bytes for thing in removable))
        more = f", the first {_SHOWN}" if len(removable) > _SHOWN else ""
        output.table(f"{len(removable)} dead objects, {total}{more}", ["object", "size", "unit"], lines)
    kept = len(dead) - len(removable)
    if kept:
        output.text(f"{kept} more belong to units that are not committed yet; they stay until those are.")


def _as_dict(dead: list[GarbageObject], removable: list[GarbageObject], deleted: int) -> dict[str, Any]:
    return {
        "removable": [{"path": thing.path, "bytes": thing.num_bytes, "unit_id": thing.unit_id} for thing in removable],
        "removable_bytes": sum(thing.num_bytes for thing in removable),
        "kept": len(dead) - len(removable),
        "deleted": deleted,
    }
