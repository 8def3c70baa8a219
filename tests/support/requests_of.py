"""Requests and settings for a real engine, without a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.poolings import TOKENS
from persona_atlas.jobs.specs.spec_parts import CaptureSpec, SamplingSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.engine import CapturedRollout, EngineSettings, Responder, TokenisedText

POOLINGS = ("response_mean", "response_last", "prompt_mean", "prompt_last")
"""Those that any text can be read for; ``user_mean`` needs to know where the user's words are."""


def requests_of(num: int, *, job_seed: int = 0, system_prompt: str = "You are a pirate.") -> list[RolloutRequest]:
    """Make requests of very different lengths, every third without a system prompt, each with its own seed."""
    requests: list[RolloutRequest] = []
    for index in range(num):
        address = RolloutAddress("role", "pirate", "pos", 0, index, 0)
        question = "Why? " * (1 + (index * 5) % 7) + str(index)
        messages = chat(system_prompt if index % 3 else "", question)
        requests.append(RolloutRequest(address, messages, address.seed(job_seed)))
    return requests


def chat(system_prompt: str, question: str) -> tuple[ChatMessage, ...]:
    """A question under a system prompt; ``""`` for none."""
    system = (ChatMessage("system", system_prompt),) if system_prompt else ()
    return (*system, ChatMessage("user", question))


def generate(engine: Responder, requests: Sequence[RolloutRequest]) -> list[CapturedRollout]:
    """Have an engine answer requests; the rows in the order of the requests."""
    to_ask = iter(requests)
    rows = {row.rollout.address: row for row in engine.generate(lambda: next(to_ask, None))}
    assert len(rows) == len(requests)
    return [rows[request.address] for request in requests]


def texts_of(rows: Sequence[CapturedRollout]) -> list[TokenisedText]:
    """The conversations of rollouts, as texts to be read under the same interventions."""
    return [TokenisedText.of(row.rollout, row.user_span, row.intervention) for row in rows]


def engine_settings(
    directory: Path,
    *,
    layers: Sequence[int],
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    top_p: float = 1.0,
    batch_tokens: int = 100_000,
    poolings: Sequence[str] = POOLINGS,
    hook_points: Sequence[str] = ("resid_post",),
    dtype: str = "float32",
    token_layers: Sequence[int] = (),
) -> EngineSettings:
    """Make settings of an engine on the CPU; at ``token_layers`` every token is kept besides the poolings."""
    capture: dict[str, Any] = {"poolings": list(poolings), "hook_points": list(hook_points)}
    if token_layers:
        capture |= {"poolings": [*poolings, TOKENS], "token_layers": list(token_layers)}
    return EngineSettings(
        directory=directory,
        dtype=dtype,
        device="cpu",
        threads=1,
        batch_tokens=batch_tokens,
        layers=tuple(layers),
        sampling=SamplingSpec(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens),
        capture=CaptureSpec.model_validate(capture),
        token_layers=tuple(token_layers),
    )
