"""Quantised weights in vLLM: what is captured is what the weights stand for, as a plain pass computes it.

The plain model has the weights that the quantised ones stand for. Where vLLM quantises weights only, nothing but the
rounding of 16 bits differs. Where it quantises activations as well, before each product, that is part of what it
computes, and the plain model lacks it: hence the two tolerances.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from persona_atlas.workers.vllm.vllm_engine import VllmEngine

from conformance import as_generated, as_read
from plain_forward import ALL_POOLINGS, PlainModel, conversation_ids, pool, relative_errors
from quantised_models import FORMATS, save_quantised
from requests_of import generate, requests_of
from vllm_engines import plain_model, vllm_engine
from vllm_families import save_vllm_family

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

WEIGHTS_ONLY = 5e-3
"""Largest relative error of a vector in float16, with weights alone quantised."""

BFLOAT16 = 4e-2
"""The same in bfloat16, which has three bits less."""

TOLERANCES = dict.fromkeys(FORMATS, WEIGHTS_ONLY) | {"int-quantized": 0.08, "float-quantized": 0.25}
"""In the last two, activations are rounded as well: to integers of eight bits, and to floats of four significant bits.
The vectors of another rollout or layer are off by more than half."""


def saved(folder: Path, layout: str, family: str) -> tuple[Path, Path]:
    """A quantised model, and the plain one with the weights that it stands for."""
    # A half of it, on one of two devices, must be whole groups.
    plain = save_vllm_family(folder / "plain", family, intermediate_size=128)
    return save_quantised(plain, folder / layout, layout), plain


def worst_error(engine: VllmEngine, plain: PlainModel) -> float:
    rows = [row for row in generate(engine, requests_of(8)) if row.rollout.has_vector]
    assert rows
    errors: list[float] = []
    for mode in (as_generated, as_read):
        for row in mode(engine, rows):
            states_LTD = plain.places(conversation_ids(row.rollout))["resid_post"]
            expected = pool(states_LTD, row.rollout, None)
            for (_, pooling), got_LD in row.vectors_LD.items():
                errors.append(float(relative_errors(got_LD, expected[pooling]).max()))
    canary = engine.canary(rows[0])
    assert canary is not None
    assert max(canary.relative_error_L) < engine.canary_limit
    assert np.isfinite(errors).all()
    return max(errors)


@pytest.mark.parametrize(
    ("layout", "family"), [*((layout, "llama") for layout in FORMATS), ("awq", "gemma2"), ("gptq", "qwen3")]
)
def test_vectors_are_those_of_the_weights_that_the_quantised_ones_stand_for(tmp_path: Path, layout: str, family: str):
    directory, plain = saved(tmp_path, layout, family)
    # vLLM refuses Gemma in float16.
    dtype, tolerance = ("bfloat16", BFLOAT16) if family == "gemma2" else ("float16", TOLERANCES[layout])
    with vllm_engine(directory, poolings=ALL_POOLINGS, dtype=dtype) as engine:
        assert "because its weights are quantised with" in engine.passes
        assert worst_error(engine, plain_model(plain, engine)) < tolerance


def test_quantised_weights_are_divided_over_devices(tmp_path: Path):
    directory, plain = saved(tmp_path, "pack-quantized", "llama")
    with vllm_engine(directory, poolings=ALL_POOLINGS, dtype="float16", tensor_parallel=2) as engine:
        assert worst_error(engine, plain_model(plain, engine)) < WEIGHTS_ONLY
