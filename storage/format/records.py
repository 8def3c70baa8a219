"""The JSON records of a store, as pydantic models: what a run is, what an attempt wrote, what is committed."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ...jobs.errors import StoreError
from ...jobs.model_facts import ModelFacts
from ...jobs.plan import Plan
from ...jobs.rollouts import Canary, FinishReason
from ...jobs.spec import JobSpec, digest_of
from .layout import COMMITS, LAYOUT_VERSION, RUN_RECORD
from .stored_units import UnitField


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        """Write as indented JSON, which people can read."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class _Sealed(_Record):
    """A record with a seal over all the rest of what is stored, so that an edit shows when it is parsed."""

    seal: str

    @classmethod
    def sealed(cls, **body: Any) -> Self:
        """Make a record and seal it."""
        unsealed = cls.model_construct(seal="", **body)
        return cls(seal=digest_of(unsealed.model_dump(mode="json", exclude={"seal"})), **body)

    @staticmethod
    def is_intact(data: bytes) -> bool:
        """Whether a record's bytes are as they were sealed; the bytes decide, so that fields may be added later."""
        body = json.loads(data)
        return body.pop("seal", None) == digest_of(body)


class RunRecord(_Sealed):
    """What a run is: ``run.json``, written once and never changed.

    Attributes:
        layout_version: Version of the store's layout.
        plan_digest: Identity of spec, model and every text; a resume must have the same.
        spec: The spec as it was at the first start, defaults filled in.
        model: What was known of the model.
        layers: Captured layers, ascending.
        num_units: Planned units.
        units_sha256: SHA-256 over ``units.parquet``, the list of them.
        num_rollouts: Planned rollouts.
        rows_per_block: Rows of a row block, in the arrays of pooled vectors.
        token_layers: Captured layers of which every token is kept.
        tokens_per_block: Rows of a row block in the arrays of tokens; 0 when none are kept.
        rendering: How prompts become tokens: hash of the chat template, what it does with a system prompt.
        versions: Versions of the packages that began the run, by name.
        created_at: ISO 8601, UTC.
    """

    layout_version: int
    plan_digest: str
    spec: JobSpec
    model: ModelFacts
    layers: tuple[int, ...]
    num_units: int
    units_sha256: str
    num_rollouts: int
    rows_per_block: int
    rendering: dict[str, Any]
    versions: dict[str, str]
    created_at: str
    token_layers: tuple[int, ...] = ()
    tokens_per_block: int = 0

    @classmethod
    def of(
        cls,
        plan: Plan,
        *,
        units_sha256: str,
        rendering: dict[str, Any],
        versions: dict[str, str],
        created_at: str,
    ) -> RunRecord:
        """Make the record of a plan."""
        return cls.sealed(
            layout_version=LAYOUT_VERSION,
            plan_digest=plan.digest,
            spec=plan.spec,
            model=plan.facts,
            layers=plan.layers,
            num_units=len(plan.units),
            units_sha256=units_sha256,
            num_rollouts=plan.num_rollouts,
            rows_per_block=plan.rows_per_block,
            rendering=rendering,
            versions=versions,
            created_at=created_at,
            token_layers=plan.token_layers,
            tokens_per_block=plan.tokens_per_block,
        )

    @property
    def of_conversations(self) -> bool:
        """Whether its texts were given, and so have a conversation and a turn."""
        return self.spec.conversations is not None

    @property
    def arrays(self) -> list[tuple[str, str]]:
        """(hook point, pooling) of every activation array."""
        capture = self.spec.capture
        return [(hook, pooling) for hook in capture.hook_points for pooling in capture.poolings]


class StoredObject(_Record):
    """One object of an attempt.

    Attributes:
        path: Path in the store.
        num_bytes: Length.
        sha256: SHA-256 (hex) over its bytes.
    """

    path: str
    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str, data: bytes, **more: Any) -> Self:
        """Describe an object by its bytes."""
        return cls(path=path, num_bytes=len(data), sha256=sha256(data).hexdigest(), **more)


class StoredShard(StoredObject):
    """An attempt's row block of one activation array.

    Attributes:
        hook_point: Hook point of the array.
        pooling: Pooling of the array.
        chunk_bytes: Length of each chunk; they follow one another from the object's start, layer by layer. A layer is
            one chunk, but for ``tokens``, where it is one for every ``TOKENS_PER_CHUNK`` tokens.
    """

    hook_point: str
    pooling: str
    chunk_bytes: tuple[int, ...]


class Manifest(_Record):
    """What one attempt wrote. It travels from worker to driver; the arrays do not.

    The three tuples have an entry for each rollout, in row order (that of ``unit.addresses()``).

    Attributes:
        unit: The unit that was worked.
        attempt: 1 for the first.
        row_block: Rows ``[row_block * rows_per_block, ... + num_rows)`` are its own.
        texts: The Parquet file of its rollouts.
        blocks: Its activation objects; one that holds no number at all was not written.
        prompt_tokens: Tokens of each prompt.
        content_tokens: Content tokens of each response.
        finish_reasons: How each response ended.
        worker: Name of the worker, for people.
        seconds: Time the model took.
        canary: How the numbers compare with a plain forward pass; None when no rollout has any content.
    """

    unit: UnitField
    attempt: int
    row_block: int
    texts: StoredObject
    blocks: tuple[StoredShard, ...]
    prompt_tokens: tuple[int, ...]
    content_tokens: tuple[int, ...]
    finish_reasons: tuple[FinishReason, ...]
    worker: str
    seconds: float
    canary: Canary | None = None

    @model_validator(mode="after")
    def _has_a_line_for_every_rollout(self) -> Manifest:
        lengths = {len(self.prompt_tokens), len(self.content_tokens), len(self.finish_reasons)}
        if lengths != {self.unit.num_rollouts}:
            raise ValueError(f"{self.unit.unit_id} has {self.unit.num_rollouts} rollouts, not {sorted(lengths)}")
        return self

    @property
    def unit_id(self) -> str:
        """Id of the unit."""
        return self.unit.unit_id

    @property
    def num_rows(self) -> int:
        """Rollouts."""
        return self.unit.num_rollouts

    @property
    def num_response_tokens(self) -> int:
        """Content tokens written in all."""
        return sum(self.content_tokens)

    @property
    def objects(self) -> tuple[StoredObject, ...]:
        """Everything the attempt wrote, in the order it was written."""
        return (self.texts, *self.blocks)


class CommitRecord(_Sealed):
    """That a unit is live, and which attempt's objects hold it. Written last, by the run's driver alone.

    Attributes:
        manifest: The attempt that counts.
        generation: Generation of the driver's lease.
        committed_at: ISO 8601, UTC.
    """

    manifest: Manifest
    generation: int
    committed_at: str

    @classmethod
    def of(cls, manifest: Manifest, *, generation: int, committed_at: str) -> CommitRecord:
        """Make a sealed record."""
        return cls.sealed(manifest=manifest, generation=generation, committed_at=committed_at)

    def to_bytes(self) -> bytes:
        """Write as JSON on one line: there are many of these, with long lists of numbers."""
        return (self.model_dump_json() + "\n").encode()


class Lease(_Record):
    """One driver's right to commit to a run, until it ends, gives it up or stops renewing it.

    Attributes:
        generation: Counts drivers; the highest holds the run.
        host: Name of the driver's machine.
        boot_id: Id of that machine's present boot: after a reboot the same process id is another process.
        pid: Process id of the driver.
        process_started: Seconds since the epoch: a process id is used again.
        expires_at: Seconds since the epoch; a driver that lives renews before.
        released: Whether the driver has ended and given the run up.
        first_row_block: It may hand out ``[first_row_block, end_row_block)``.
        end_row_block: End of that range, exclusive.
        holder: Id of the job on a cluster, by which a driver that Ray started again takes its own run over; ``""`` for
            a driver without a job.
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
    holder: str = ""


R = TypeVar("R", bound=_Record)


def parse_record(model: type[R], data: bytes, url: str) -> R:
    """Read a record.

    Raises:
        StoreError: It is not such a record; says whether a newer version wrote it.
    """
    version = _layout_version(data) if url.endswith(RUN_RECORD) else None
    if version is not None and version != LAYOUT_VERSION:
        is_newer = version > LAYOUT_VERSION
        raise StoreError(
            f"the store has layout version {version}; this Persona Atlas reads {LAYOUT_VERSION}.",
            code="newer_layout" if is_newer else "older_layout",
            file=url,
            hint="Upgrade persona-atlas." if is_newer else "Read it with the version that wrote it, or run it again.",
        )
    try:
        record = model.model_validate_json(data)
    except ValidationError as error:
        raise _damaged(url, error.errors(include_url=False)[0]["msg"]) from None
    if isinstance(record, _Sealed) and not record.is_intact(data):
        raise _damaged(url, "its seal does not match the rest of it")
    return record


def _damaged(url: str, reason: str) -> StoreError:
    hint = "Restore it from a copy."
    if f"/{COMMITS}/" in url:
        hint = "Restore it from a copy, or delete it: the command that began the run then does its unit again."
    return StoreError(f"is damaged or was edited: {reason}.", code="bad_record", file=url, hint=hint)


def _layout_version(data: bytes) -> int | None:
    try:
        version = json.loads(data).get("layout_version")
    except (ValueError, AttributeError):
        return None
    return version if isinstance(version, int) else None
