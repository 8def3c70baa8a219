"""Conformance on the device: what the built-in engine captures equals plain passes, for every family.

Tiny random models of ``tests/support/tiny_families.py``, in float32 and bf16. Vectors of every hook point and pooling,
and every token of two layers, come from generation and from prefill passes, without and with interventions. The
reference runs each conversation alone through transformers, on the same device and in the same type, with hooks of its
own (``tests/support/plain_forward.py``). In float32 the plain pass runs on the CPU as well, so that an error that the
device makes in both is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from persona_atlas.jobs.interventions import Ablate, AddVector, Cap, Direction, Intervention
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import CapturedRollout

from _gpu.bench import Bench
from plain_forward import ALL_POOLINGS, POINTS, PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, generate, requests_of, texts_of
from tiny_families import D_MODEL, FAMILIES, N_LAYERS, WITH_IMAGES, save_tiny_family

LIMITS = {"float32": 1e-4, "bfloat16": 0.2}
"""Largest relative error of a vector, or of one token. In float32 it is that of the tests. In bf16 single tokens of
these models, 32 wide and with large weights, are off by up to 0.1 from rounding alone."""

_MOST = {"float32": 1e-4, "bfloat16": 5e-2}
"""What nine errors in ten must be below; in bf16 the limit of the canary."""

_TOKEN_LAYERS = (1, N_LAYERS - 1)


def _vector(seed: int) -> Direction:
    return Direction.of(np.random.default_rng(seed).standard_normal(D_MODEL))


_INTERVENTIONS: tuple[Intervention | None, ...] = (
    None,
    Intervention((AddVector(1, _vector(1), 1.0),)),
    Intervention((Cap(0, _vector(2), 0.5), AddVector(2, _vector(3), 0.5, positions="response"))),
    Intervention((Ablate(1, _vector(4)), Cap.ceiling(1, _vector(5), 0.0), Cap(2, _vector(6), 1.0, "response"))),
)
"""What neighbours in a batch get, in turns."""


def conformance(bench: Bench) -> None:
    """Compare every family with plain passes.

    Raises:
        ExceptionGroup: Families could not be run, each with its error.
    """
    every = FAMILIES | WITH_IMAGES
    errors: list[Exception] = [ValueError(f"no family {name}") for name in bench.families if name not in every]
    left_out: list[str] = []
    for family, make_config in every.items():
        if bench.families and family not in bench.families:
            continue
        if bench.seconds_left < 5:
            left_out.append(family)
            continue
        try:
            make_config()
        except ImportError as error:
            bench.report.say(f"{family}: not in this transformers ({error})")
            continue
        errors += _compared(bench, family)
        if errors and not bench.is_usable():
            errors.append(RuntimeError(f"the device is of no more use after {family}"))
            break
    if left_out:
        errors.append(TimeoutError(f"no time was left for {', '.join(left_out)}"))
    if errors:
        raise ExceptionGroup("conformance", errors)


def _compared(bench: Bench, family: str) -> Iterator[Exception]:
    """Report the largest error of a family in each type; yield what failed."""
    for dtype, limit in LIMITS.items():
        try:
            found = family_errors(bench, family, dtype)
        except Exception as error:  # noqa: BLE001 - kept and raised when all families have run
            error.add_note(f"{family} in {dtype}")
            yield error
            continue
        _report(bench, f"{family} {dtype}", found, limit, _MOST[dtype])


def _report(bench: Bench, name: str, found: np.ndarray, limit: float, most: float) -> None:
    if most < limit:
        bench.report.most(f"{name}: error of nine in ten", float(np.quantile(found, 0.9)), "ratio", most)
    # In a mixture of experts, rounding may send a token to another expert than in the plain pass, and then all that is
    # seen of it differs.
    is_routed = "moe" in name and most < limit
    bench.report.most(f"{name}: error", float(np.max(found)), "ratio", None if is_routed else limit)


def family_errors(bench: Bench, family: str, dtype: str) -> np.ndarray:
    """Compute the relative errors of everything that an engine captures with a tiny model of a family.

    Args:
        bench: Device and sizes.
        family: The family.
        dtype: Type of the model's parameters.

    Returns:
        One error for each vector and each kept token of a layer.

    Raises:
        AssertionError: A rollout lacks a value or has one that it must not have.
    """
    directory = bench.scratch / family
    if not directory.exists():
        directory.mkdir()
        save_tiny_family(directory, family)
    settings = engine_settings(
        directory,
        layers=range(N_LAYERS),
        hook_points=POINTS,
        poolings=ALL_POOLINGS,
        # Room for a part of the requests, so that some join while others run.
        batch_tokens=1000,
        dtype=dtype,
        token_layers=_TOKEN_LAYERS,
    )
    engine = BuiltinEngine(replace(settings, device=bench.device, threads=torch.get_num_threads()))
    places = [bench.device] if dtype != "float32" or not bench.is_gpu else [bench.device, "cpu"]
    found: list[np.ndarray] = []
    for kinds in ((None,), _INTERVENTIONS):
        rows = generate(engine, _requests(bench.sizes.requests, kinds))
        both = [*rows, *_read(engine, rows)]
        for place in places:
            plain = {kind: _plain(directory, dtype, place, kind) for kind in kinds}
            known: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}
            for row in both:
                ids = tuple(conversation_ids(row.rollout))
                key = (row.intervention, ids)
                if key not in known:
                    known[key] = plain[row.intervention].places(ids, len(row.rollout.prompt_token_ids))
                found += _row_errors(row, known[key])
    return np.concatenate(found)


def _requests(num: int, kinds: Sequence[Intervention | None]) -> list[RolloutRequest]:
    # A long system prompt, which is worth sharing, and none for every third request.
    asked = requests_of(num, system_prompt="You are a pirate. " * 3)
    return [replace(request, intervention=kinds[i % len(kinds)]) for i, request in enumerate(asked)]


def _read(engine: BuiltinEngine, rows: Sequence[CapturedRollout]) -> list[CapturedRollout]:
    return [
        replace(row, vectors_LD=text.vectors_LD[0], tokens_KTD=text.tokens_KTD[0])
        for row, text in zip(rows, engine.capture(texts_of(rows)), strict=True)
    ]


def _plain(directory: Any, dtype: str, device: str, intervention: Intervention | None) -> PlainModel:
    edits = intervention.edits if intervention else ()
    return PlainModel(directory, getattr(torch, dtype), edits, device=device)


def _row_errors(row: CapturedRollout, states: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    assert len(row.vectors_LD) == len(POINTS) * len(ALL_POOLINGS), "an array is missing"
    assert len(row.tokens_KTD) == len(POINTS), "kept tokens are missing"
    pooled: dict[str, dict[str, np.ndarray]] = {point: pool(states[point], row.rollout) for point in POINTS}
    for (point, pooling), got_LD in row.vectors_LD.items():
        if pooling.startswith("response_") and not row.rollout.has_vector:
            assert np.isnan(got_LD).all(), "an empty response has a vector"
        else:
            yield relative_errors(got_LD, pooled[point][pooling])
    for (point, _), got_KTD in row.tokens_KTD.items():
        expected_KTD = states[point][list(_TOKEN_LAYERS), len(row.rollout.prompt_token_ids) :]
        assert got_KTD.shape == expected_KTD.shape, "the kept tokens are not those of the response"
        yield relative_errors(got_KTD, expected_KTD).ravel()
