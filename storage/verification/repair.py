"""Repair a run: take the commit records of damaged units out of it, so that the next driver does these units again.

No object of an attempt is deleted. A record that is taken out is first copied to ``withdrawn/``, under a name with its
checksum, so that a repair that was cut short can be repeated. Damage is found again under the run's lease before a
record is touched: nothing that is sound is withdrawn, and no driver works meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

from ...jobs.errors import StoreError
from ..derived.reductions import check_reduction, current_reduction_id
from ..format import layout
from ..format.planned_units import read_units
from ..format.records import RunRecord
from ..locations.location import Location
from ..run.commits import PARALLEL_READS, committed_units, read_commits
from ..run.index_keeper import rebuild_index
from ..run.lease import HeldLease, acquire
from ..run.run_store import read_run_record, reserve_rows
from .verify import shared_row_blocks
from .verify_unit import Problem, UnitCheck

_REBUILT = ("wrong_index", "stale_index", "index_ahead", "bad_array", "short_array")
"""Codes of what is derived from the records, and is written anew."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did.

    Attributes:
        units: Ids of the units whose commit records were withdrawn; the next run does them again.
        objects: Paths of all objects that were withdrawn, commit records included.
        left: Damage that only a copy can repair, or the judge that gave the scores.
    """

    units: tuple[str, ...]
    objects: tuple[str, ...]
    left: tuple[Problem, ...]


def cannot_repair(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the damage that a repair would leave: that of no unit, and of nothing that is derived from the records.

    Args:
        problems: What ``verify_run`` found.
    """
    return tuple(
        problem
        for problem in problems
        if problem.kind == "damage"
        and problem.unit_id is None
        and problem.code not in _REBUILT
        and not problem.path.startswith(f"{layout.ANALYSIS}/")
    )


def repair_run(location: Location, record: RunRecord, problems: Collection[Problem]) -> Repair:
    """Withdraw the commit records of damaged units and of a damaged reduction, and rebuild index and array metadata.

    Args:
        location: The run's store.
        record: The run's record.
        problems: What ``verify_run`` found. Each damaged unit is checked again.

    Raises:
        InputError: A driver works on the run.
        StoreError: The lease was lost, or a commit record was damaged in the meantime.
        TransientError: The store cannot be reached; what was withdrawn stays so, and the same call does the rest.
    """
    suspects = sorted({problem.unit_id for problem in problems if problem.kind == "damage" and problem.unit_id})
    with acquire(location, 0) as lease:
        # The run may have grown since it was verified, and only under the lease it stays as it is.
        record = read_run_record(location) or record
        units = _damaged(location, record, suspects)
        objects = [layout.commit_path(unit_id) for unit_id in units]
        objects += _damaged_reduction(location)
        objects += [problem.path for problem in problems if problem.code == "bad_array"]
        withdrawn = [path for path in objects if _withdraw(location, lease, path)]
        # Behind everything that any driver has assigned, so that no row block is assigned twice.
        reserve_rows(location, record, lease.row_blocks.stop)
        rebuild_index(location, record, read_commits(location, sorted(committed_units(location))))
    return Repair(tuple(units), tuple(withdrawn), cannot_repair(problems))


def _damaged(location: Location, record: RunRecord, suspects: Collection[str]) -> list[str]:
    """Check units again, and return those that are damaged."""
    try:
        planned = read_units(location, record)
    except StoreError:
        # Reported as damage of its own. Without the list a unit is compared with its objects alone.
        planned = None
    check = UnitCheck(location, record, planned, quick=False)
    present = sorted(set(suspects) & committed_units(location))
    with ThreadPoolExecutor(PARALLEL_READS // 4) as pool:
        reports = list(pool.map(check.run, present))
    damaged = {unit_id for unit_id, report in zip(present, reports, strict=True) if report.problems}
    commits = [report.commit for report in reports if report.commit is not None]
    return sorted(damaged | {str(problem.unit_id) for problem in shared_row_blocks(commits)})


def _damaged_reduction(location: Location) -> list[str]:
    """List the records that name the current reduction, if it cannot be read; it can be computed again."""
    try:
        check_reduction(location)
    except StoreError:
        pass
    else:
        return []
    try:
        named = [layout.reduction_record_path(str(current_reduction_id(location)))]
    except StoreError:
        # It does not say which one, and its record may be as damaged: each is a record of what can be computed again.
        named = [f"{layout.ANALYSIS}/{name}" for name in location.names(layout.ANALYSIS) if name.endswith(".json")]
    return sorted({layout.CURRENT_REDUCTION, *named})


def _withdraw(location: Location, lease: HeldLease, path: str) -> bool:
    """Move an object to ``withdrawn/``; False where it is gone already."""
    data = location.read(path)
    if data is None:
        return False
    # The name has the checksum, so an object that is there already, of a repair that was cut short, is this one.
    location.create(layout.withdrawn_path(path, sha256(data).hexdigest()), data)
    lease.check()
    location.delete([path])
    return True
