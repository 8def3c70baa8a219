"""The JSON records of a store as pydantic models: run record, manifest of an attempt, commit record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ...jobs.engines import Engine
from ...jobs.errors import StoreError
from ...jobs.model_facts import ModelFacts
from ...jobs.plan import Plan
from ...jobs.specs.endpoint_keys import from_store
from ...jobs.specs.spec import JobSpec
from ...jobs.specs.spec_parts import CanarySpec
from ...jobs.work.rollouts import Canary, FinishReason
from .additions import AdditionRecord
from .layout import (
    COMMITS,
    DIALOGUE_LAYOUT_VERSION,
    EDITED_LAYOUT_VERSION,
    LAYOUT_VERSION,
    LAYOUT_VERSIONS,
    RUN_RECORD,
    VECTORS_RECORD,
)
from .sealed import Record, Sealed
from .stored_edits import StoredEdits
from .stored_units import UnitField
from .unit_records import EditedUnit, ServedUnit

BUILTIN_ENGINE: Engine = "builtin"
"""The engine of every record that names none."""


class RunRecord(Sealed):
    """The record of a run: ``run.json``, written once. ``read_run_record`` returns it with all additions (``grown``).

    Attributes:
        layout_version: Version of the store's layout.
        plan_digest: Digest of the identity of spec and model and of every text; a resumed job must have the same.
        spec: The spec of the first start, with defaults filled in; marked as read from a store (``endpoint_keys``).
        model: Shape and fingerprint of the model.
        layers: Decoder layers along the second axis of the pooled arrays, 0-based.
        num_units: Number of planned units.
        units_sha256: SHA-256 of the list of planned units, as hexadecimal digits.
        num_rollouts: Number of planned rollouts.
        rows_per_block: Rows per shard of the pooled arrays.
        token_layers: Decoder layers along the second axis of ``tokens`` arrays; empty in a run without them.
        tokens_per_block: Rows per shard of the ``tokens`` arrays; 0 in a run without them.
        passes: Which texts have a forward pass of their own, and why, and whether weights are loaded layer by layer, in
            sentences; empty where all share passes of a model that is held.
        rendering: How prompts become tokens: hash of the chat template, and what it does with a system prompt.
        versions: Software that started the run, by name of the package.
        created_at: ISO 8601, in UTC.
        engine: The engine of the first start: ``builtin``, which is not stored, or ``vllm``. A later start may have
            another one; the commit record of each unit names its own.
        interventions: Edits of the residual stream under which every rollout was made; None, which is not stored, for
            none.
    """

    layout_version: int
    plan_digest: str
    spec: Annotated[JobSpec, AfterValidator(from_store)]
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
    passes: str = ""
    engine: Engine = BUILTIN_ENGINE
    interventions: StoredEdits | None = None
    _additions: tuple[AdditionRecord, ...] = PrivateAttr(default=())

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Records of runs of the built-in engine, and of those without interventions, have the bytes that they had
        # before these fields existed.
        fields = write(self)
        if self.engine == BUILTIN_ENGINE:
            del fields["engine"]
        if self.interventions is None:
            del fields["interventions"]
        return fields

    @classmethod
    def of(
        cls,
        plan: Plan,
        *,
        units_sha256: str,
        rendering: dict[str, Any],
        versions: dict[str, str],
        created_at: str,
        passes: str = "",
        engine: Engine = BUILTIN_ENGINE,
        interventions: StoredEdits | None = None,
    ) -> RunRecord:
        """Make the sealed record of a plan; ``interventions`` describes the plan's edits."""
        return cls.sealed(
            layout_version=_version_of(plan, is_edited=interventions is not None),
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
            passes=passes,
            engine=engine,
            interventions=interventions,
        )

    def grown(self, additions: Sequence[AdditionRecord]) -> RunRecord:
        """Return the record of the run since its newest addition, with all units counted. It is not stored.

        Args:
            additions: At least one, all that follow this record in order.
        """
        newest = additions[-1]
        since = {
            "spec": newest.spec,
            "plan_digest": newest.plan_digest,
            "num_units": self.num_units + sum(addition.num_units for addition in additions),
            "num_rollouts": self.num_rollouts + sum(addition.num_rollouts for addition in additions),
            "rendering": self.rendering | {"rows": newest.rows},
        }
        whole = self.model_copy(update=since)
        whole._additions = (*self._additions, *additions)
        return whole

    @property
    def additions(self) -> tuple[AdditionRecord, ...]:
        """What was added to the run since it was begun, in order."""
        return self._additions

    @property
    def unit_lists(self) -> tuple[str, ...]:
        """SHA-256 of each list of planned units: that of the first start, then those of the additions."""
        return (self.units_sha256, *(addition.units_sha256 for addition in self._additions))

    @property
    def plan_digests(self) -> frozenset[str]:
        """Digests of the run's plan now and before each addition: caches of any of them list units of this run."""
        return frozenset({self.plan_digest, *(addition.grown_from for addition in self._additions)})

    @property
    def of_conversations(self) -> bool:
        """Whether rollouts are turns of conversations, given or generated, and have a conversation and a turn index."""
        return self.spec.has_turns

    @property
    def of_given_texts(self) -> bool:
        """Whether the responses existed before the run, so that no seed was used."""
        return self.spec.conversations is not None

    @property
    def of_prompts(self) -> bool:
        """Whether the conversations are prompts without an answer, so that every response is empty on purpose."""
        return self.spec.conversations is not None and self.spec.conversations.prompts_only

    @property
    def is_served(self) -> bool:
        """Whether a server generated the responses."""
        return self.spec.generation is not None

    @property
    def is_edited(self) -> bool:
        """Whether every rollout was made under interventions."""
        return self.interventions is not None

    @property
    def arrays(self) -> list[tuple[str, str]]:
        """Hook point and pooling of every activation array."""
        capture = self.spec.capture
        return [(hook, pooling) for hook in capture.hook_points for pooling in capture.poolings]


def _version_of(plan: Plan, *, is_edited: bool) -> int:
    """Return the layout version of a new run: the lowest whose readers understand it."""
    if plan.spec.has_turns and plan.source.generates:
        return DIALOGUE_LAYOUT_VERSION
    return EDITED_LAYOUT_VERSION if is_edited else LAYOUT_VERSION


class StoredObject(Record):
    """An object that an attempt wrote.

    Attributes:
        path: Path in the store.
        num_bytes: Length of the object in bytes.
        sha256: SHA-256 of its bytes, as hexadecimal digits.
    """

    path: str
    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str, data: bytes, **more: Any) -> Self:
        """Describe an object; ``more`` are fields of a subclass."""
        return cls(path=path, num_bytes=len(data), sha256=sha256(data).hexdigest(), **more)


class StoredShard(StoredObject):
    """An attempt's shard of one activation array.

    Attributes:
        hook_point: Hook point of the array.
        pooling: Pooling of the array.
        chunk_bytes: Length of each inner chunk in bytes, in the order in which they follow one another from byte 0:
            layer by layer, one per layer, or in a ``tokens`` array one per ``TOKENS_PER_CHUNK`` tokens.
    """

    hook_point: str
    pooling: str
    chunk_bytes: tuple[int, ...]


class Manifest(Record):
    """The objects that one attempt wrote. Sent from worker to driver instead of the arrays themselves.

    ``prompt_tokens``, ``content_tokens`` and ``finish_reasons`` have one entry per rollout, in row order (that of
    ``unit.addresses()``).

    Attributes:
        unit: The unit.
        attempt: Number of the attempt, from 1.
        row_block: The attempt's rows are those from ``row_block * rows_per_block`` on, ``num_rows`` of them.
        texts: The Parquet table of the rollouts.
        blocks: The shards. One without any value, because every response was empty, is not written and not listed.
        prompt_tokens: Number of tokens of each prompt.
        content_tokens: Number of content tokens of each response.
        finish_reasons: Why each response ended.
        worker: Name of the worker, for people.
        seconds: Time the model took, in seconds.
        canary: Comparison of some rollouts with a plain forward pass; None when none was compared.
        canary_rule: The rule by which these rollouts were chosen; None in records from before there was a choice, of
            units whose longest response was compared.
        served: How the server that generated the responses answered; None, and not stored, where no server did.
        engine: The engine that captured: ``builtin``, which is not stored, or ``vllm`` and its version.
        edited: What the run's interventions did; None, and not stored, in a run without any.
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
    canary_rule: CanarySpec | None = None
    served: ServedUnit | None = None
    engine: str = BUILTIN_ENGINE
    edited: EditedUnit | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Records of units that no server generated, that the built-in engine captured, that nothing edited and whose
        # canary was within its limit have the bytes that they had before these fields existed.
        fields = write(self)
        if self.served is None:
            del fields["served"]
        if self.engine == BUILTIN_ENGINE:
            del fields["engine"]
        if self.edited is None:
            del fields["edited"]
        if self.canary is not None:
            del fields["canary"]["taken_for"]
            if not self.canary.num_above:
                del fields["canary"]["num_above"]
        if self.canary_rule is not None and self.canary_rule.action != "warn":
            del fields["canary_rule"]["action"]
        return fields

    @model_validator(mode="after")
    def _has_a_line_for_every_rollout(self) -> Manifest:
        lengths = {len(self.prompt_tokens), len(self.content_tokens), len(self.finish_reasons)}
        lengths |= {len(self.served.tokens)} if self.served is not None else set()
        lengths |= {len(self.edited.shares), len(self.edited.corrections)} if self.edited is not None else set()
        if lengths != {self.unit.num_rollouts}:
            raise ValueError(f"{self.unit.unit_id} has {self.unit.num_rollouts} rollouts, not {sorted(lengths)}")
        return self

    @property
    def unit_id(self) -> str:
        """Id of the manifest's unit."""
        return self.unit.unit_id

    @property
    def num_rows(self) -> int:
        """Number of rollouts, hence of rows."""
        return self.unit.num_rollouts

    @property
    def num_response_tokens(self) -> int:
        """Number of content tokens of all responses."""
        return sum(self.content_tokens)

    @property
    def objects(self) -> tuple[StoredObject, ...]:
        """All objects of the attempt in the order of writing: the table of rollouts, then the shards."""
        return (self.texts, *self.blocks)


class CommitRecord(Sealed):
    """The record that makes one attempt of a unit visible to readers. Created by a driver after the attempt's objects.

    Attributes:
        manifest: The objects of the committed attempt.
        generation: Number of the driver's lease.
        committed_at: ISO 8601, in UTC.
    """

    manifest: Manifest
    generation: int
    committed_at: str

    @classmethod
    def of(cls, manifest: Manifest, *, generation: int, committed_at: str) -> CommitRecord:
        """Make a sealed record."""
        return cls.sealed(manifest=manifest, generation=generation, committed_at=committed_at)

    def to_bytes(self) -> bytes:
        """Encode as JSON on one line: a run has many of these records, with long lists of numbers."""
        return (self.model_dump_json() + "\n").encode()


R = TypeVar("R", bound=Record)


def parse_record(model: type[R], data: bytes, url: str) -> R:
    """Parse a record and check its seal.

    Args:
        model: The type of the record.
        data: The object's bytes.
        url: URL of the object, for error messages.

    Raises:
        StoreError: The bytes are not such a record, its seal does not match, or the store has another layout version.
    """
    version = layout_version_of(data) if url.endswith((RUN_RECORD, VECTORS_RECORD)) else None
    if version is not None and version not in LAYOUT_VERSIONS:
        is_newer = version > max(LAYOUT_VERSIONS)
        raise StoreError(
            f"the store has layout version {version}; this Persona Atlas reads "
            f"{', '.join(map(str, LAYOUT_VERSIONS[:-1]))} and {LAYOUT_VERSIONS[-1]}.",
            code="newer_layout" if is_newer else "older_layout",
            file=url,
            hint="Upgrade persona-atlas." if is_newer else "Read it with the version that wrote it, or run it again.",
        )
    try:
        record = model.model_validate_json(data)
    except ValidationError as error:
        raise _damaged(url, error.errors(include_url=False)[0]["msg"]) from None
    if isinstance(record, Sealed) and not record.is_intact(data):
        raise _damaged(url, "its seal does not match its fields")
    return record


def _damaged(url: str, reason: str) -> StoreError:
    hint = "Restore it from a copy."
    if f"/{COMMITS}/" in url:
        hint = "Restore it from a copy, or let verify --repair withdraw it, so that the next run redoes its unit."
    return StoreError(f"this record is damaged or was edited: {reason}.", code="bad_record", file=url, hint=hint)


def layout_version_of(data: bytes) -> int | None:
    """Return the version of the layout that a store's record names; None for a file that is no such record."""
    try:
        version = json.loads(data).get("layout_version")
    except (ValueError, AttributeError, RecursionError):
        return None
    return version if isinstance(version, int) else None
