"""An engine without a model, whose vectors identify their rollout, and small specs and plans to run it on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from persona_atlas.jobs.catalog import Catalog, load_catalog
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.model_facts import ModelFacts
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.sources.persona_source import PersonaSource
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.rollouts import ArrayName, Canary, Rollout
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import RolloutRequest, UnitAttempt
from persona_atlas.workers.engine import CapturedRollout, CapturedText, TokenisedText

FACTS = ModelFacts(
    n_layers=4,
    d_model=16,
    num_parameters=10_000,
    kv_values_per_token=128,
    dtype="float32",
    family="llama",
    max_context=2048,
    fingerprint="f" * 64,
)


def vector_of(address: RolloutAddress, array: ArrayName, num_layers: int, d_model: int) -> np.ndarray:
    """Make FakeEngine's vector of an address, float32 (num_layers, d_model): a direction per persona, plus noise."""

    def draw(text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal((num_layers, d_model))

    own = draw(f"{address}|{array}")
    persona = draw(f"{address.kind}/{address.persona}/{address.polarity}|{array}")
    return (3 * persona + own).astype(np.float32)


def tokens_of(address: RolloutAddress, num_tokens: int, num_layers: int, d_model: int) -> np.ndarray:
    """Make FakeEngine's token activations of an address, float32 (num_layers, num_tokens, d_model)."""
    seed = int.from_bytes(hashlib.sha256(f"{address}|tokens".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal((num_layers, num_tokens, d_model)).astype(np.float32)


@dataclass
class FakeEngine:
    """An engine that answers at once, with scripted failures and empty responses.

    Attributes:
        layers: Captured layers.
        d_model: Width of the vectors.
        arrays: Captured pairs of hook point and pooling.
        token_layers: Layers at which every token is kept.
        fail_on_calls: 1-based calls of ``generate`` that raise.
        fail_personas: Personas for which ``generate`` raises.
        empty: Addresses whose response is empty.
        token_layers: Of which every token is kept.
        more: Said after every other response.
        passes: What it tells of its forward passes.
        canary_error: What every canary shows.
        canary_errors: What the canaries of these addresses show instead.
        canary_taken_for: What every canary takes the captured vectors for.
        compared: Addresses of which a canary was asked, in that order.
        prefetch: Units that it wants to have waiting.
        calls: What was asked, call by call; a call with nothing to do is none.
        num_closed: How often it was closed.
    """

    layers: tuple[int, ...] = (0, 1, 2, 3)
    d_model: int = 16
    arrays: tuple[ArrayName, ...] = (("resid_post", "response_mean"),)
    token_layers: tuple[int, ...] = ()
    fail_on_calls: frozenset[int] = frozenset()
    fail_personas: frozenset[str] = frozenset()
    empty: frozenset[RolloutAddress] = frozenset()
    more: str = ""
    canary_error: float = 1e-6
    canary_errors: dict[RolloutAddress, float] = field(default_factory=dict)
    canary_taken_for: str = ""
    compared: list[RolloutAddress] = field(default_factory=list)
    canary_limit: float = 1e-3
    passes: str = ""
    tokens_per_capture: int = 0
    prefetch: int = 0
    calls: list[list[RolloutAddress]] = field(default_factory=list)
    num_closed: int = 0

    @property
    def reader(self) -> FakeEngine:
        return self

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        requests = list(iter(next_request, None))
        if not requests:
            return
        self.calls.append([request.address for request in requests])
        if len(self.calls) in self.fail_on_calls:
            raise UnitError(f"scripted failure of call {len(self.calls)}.", code="scripted")
        for request in requests:
            if request.address.persona in self.fail_personas:
                raise UnitError(f"scripted failure of {request.address.persona}.", code="scripted")
        yield from [self._answer(request) for request in requests]

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        raise NotImplementedError

    def canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout] = ()) -> Canary | None:
        if not captured.rollout.has_vector:
            return None
        address = captured.rollout.address
        self.compared.append(address)
        error = self.canary_errors.get(address, self.canary_error)
        return Canary(1, (error,) * len(self.layers), (1.0,) * len(self.layers), taken_for=self.canary_taken_for)

    def close(self) -> None:
        self.num_closed += 1

    def _answer(self, request: RolloutRequest) -> CapturedRollout:
        is_empty = request.address in self.empty
        vectors: dict[ArrayName, np.ndarray] = {}
        for array in self.arrays:
            vector = vector_of(request.address, array, len(self.layers), self.d_model)
            vectors[array] = np.full_like(vector, np.nan) if is_empty else vector
        given = request.given
        said = f"I answer {request.address}{self.more}" if given is None else given.text
        text = "" if is_empty else said
        content = tuple(range(3, 3 + len(text.split())))
        rollout = Rollout(
            address=request.address,
            system_prompt=request.system_prompt,
            question=request.question,
            response=text,
            prompt_token_ids=(5, 6, 7),
            response_token_ids=(*content, 2),
            num_content_tokens=len(content),
            finish_reason="stop" if given is None else "given",
            seed=request.seed,
            conversation_index=given.conversation.conversation_index if given else None,
            extra=given.extra if given else "",
        )
        tokens: dict[ArrayName, np.ndarray] = {}
        if self.token_layers:
            kept = tokens_of(request.address, len(content), len(self.token_layers), self.d_model)
            tokens["resid_post", "tokens"] = kept
        return CapturedRollout(rollout, vectors, tokens, intervention=request.intervention)


def small_spec(store_url: str = "unused", **changes: object) -> JobSpec:
    """Make a spec of three roles, a trait and the default, with two prompts and three questions each."""
    counts = {"prompts": 2, "questions": 3}
    data: dict[str, object] = {
        "model": {"source": "none", "name": "Nobody"},
        "personas": {
            "roles": {"names": ["pirate", "poet", "teacher"], **counts},
            "traits": {"names": ["anxious"], **counts},
            "default": counts,
        },
        "store": {"url": store_url},
    }
    return JobSpec.model_validate(data | changes)


def small_plan(spec: JobSpec | None = None, catalog: Catalog | None = None, facts: ModelFacts = FACTS) -> Plan:
    """The plan of ``small_spec``."""
    spec = spec or small_spec()
    return make_plan(spec, PersonaSource(spec, catalog or load_catalog()), facts)


def block_of(plan: Plan, unit_id: str, row_block: int, engine: FakeEngine | None = None) -> UnitResult:
    """Run a unit on FakeEngine and return its result."""
    from persona_atlas.workers.run_units import run_units

    unit = plan.by_id[unit_id]
    attempt = UnitAttempt(unit, plan.requests(unit), 1, row_block)
    (block,) = run_units(engine or FakeEngine(), iter([attempt, None]).__next__)
    assert isinstance(block, UnitResult)
    return block
