"""The JSON records of a store, as pydantic models: what a run is, what an attempt wrote, what is committed."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..jobs.errors import StoreError
from ..jobs.plan import ModelFacts, Plan
from ..jobs.spec import JobSpec
from .layout import LAYOUT_VERSION, RUN_RECORD


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        """Write as indented JSON, for people who look."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class RunRecord(_Record):
    """What a run is: ``run.json``, written once and never changed.

    Attributes:
        layout_version: Of the store.
        plan_digest: Identity of spec, model and every text; a resume must have the same.
        spec: The spec as it was at the first start, defaults filled in.
        model: Facts of the model.
        layers: Captured blocks.
        num_units: Planned.
        num_rollouts: Planned.
        rows_per_block: Rows of a shard.
        rendering: How prompts become tokens: hash of the chat template, what it does with a system prompt.
        versions: Of the software that began the run.
        created_at: ISO 8601, UTC.
    """

    layout_version: int
    plan_digest: str
    spec: JobSpec
    model: ModelFacts
    layers: tuple[int, ...]
    num_units: int
    num_rollouts: int
    rows_per_block: int
    rendering: dict[str, Any]
    versions: dict[str, str]
    created_at: str

    @classmethod
    def of(cls, plan: Plan, *, rendering: dict[str, Any], versions: dict[str, str], created_at: str) -> RunRecord:
        """Make the record of a plan."""
        return cls(
            layout_version=LAYOUT_VERSION,
            plan_digest=plan.digest,
            spec=plan.spec,
            model=plan.facts,
            layers=plan.layers,
            num_units=len(plan.units),
            num_rollouts=plan.num_rollouts,
            rows_per_block=plan.rows_per_block,
            rendering=rendering,
            versions=versions,
            created_at=created_at,
        )

    @property
    def arrays(self) -> list[tuple[str, str]]:
        """(hook point, pooling) of every activation array."""
        capture = self.spec.capture
        return [(hook, pooling) for hook in capture.hook_points for pooling in capture.poolings]


class StoredObject(_Record):
    """One object of an attempt.

    Attributes:
        path: In the store.
        num_bytes: Its length.
        sha256: Over exactly its bytes.
    """

    path: str
    num_bytes: int
    sha256: str


class Manifest(_Record):
    """What one attempt wrote. It travels from worker to driver; the arrays do not.

    Attributes:
        attempt: 1 for the first.
        row_block: Rows ``[row_block * rows_per_block, ... + num_rows)`` are its own.
        num_rows: Rollouts.
        objects: Everything it wrote: activations first, texts last.
        worker: Who, for people.
        num_prompt_tokens: Read in all.
        num_response_tokens: Written in all, content only.
        seconds: Time the model took.
    """

    unit_id: str
    attempt: int
    row_block: int
    num_rows: int
    objects: tuple[StoredObject, ...]
    worker: str
    num_prompt_tokens: int
    num_response_tokens: int
    seconds: float


class CommitRecord(_Record):
    """That a unit is live, and which attempt's objects hold it. Written last, by the run's driver alone.

    Attributes:
        manifest: The attempt that counts.
        generation: Of the driver's lease.
        committed_at: ISO 8601, UTC.
    """

    manifest: Manifest
    generation: int
    committed_at: str


class Lease(_Record):
    """One driver's right to commit to a run, until it ends, gives it up or stops renewing it.

    Attributes:
        generation: Counts drivers; the highest holds the run.
        host: Of the driver.
        boot_id: Of that host's present start, so that a process id is not mistaken after a reboot.
        pid: Of the driver.
        process_started: Seconds since the epoch, for the same reason.
        expires_at: Seconds since the epoch; a driver that lives renews before.
        released: Whether the driver has ended in good order.
        first_row_block: It may hand out ``[first_row_block, end_row_block)``.
        end_row_block: See there.
    """

    generation: int
    host: str
    boot_id: str
    pid: int
    process_started: float
    expires_at: float
    released: bool
    first_row_block: int
    end_row_block: int


R = TypeVar("R", bound=_Record)


def parse_record(model: type[R], data: bytes, url: str) -> R:
    """Read a record.

    Raises:
        StoreError: It is not such a record; says whether a newer version wrote it.
    """
    version = _layout_version(data) if url.endswith(RUN_RECORD) else None
    if version is not None and version > LAYOUT_VERSION:
        raise StoreError(
            f"the store has layout version {version}; this Persona Atlas reads up to {LAYOUT_VERSION}.",
            code="newer_layout",
            file=url,
            mend="Upgrade persona-atlas.",
        )
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(
            f"is damaged or was edited: {error.errors(include_url=False)[0]['msg']}.",
            code="bad_record",
            file=url,
            mend="Restore it from a copy.",
        ) from None


def _layout_version(data: bytes) -> int | None:
    import json

    try:
        version = json.loads(data).get("layout_version")
    except (ValueError, AttributeError):
        return None
    return version if isinstance(version, int) else None
