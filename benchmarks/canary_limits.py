"""What rounding does to captured vectors, and what a mistake does: errors against plain passes, by family and depth.

    python benchmarks/canary_limits.py [--json] [--families llama,qwen3_moe] [--depths 4,32]

Random models of several families, shallow and deep, in float32 and bfloat16 on the CPU. For each pooling: the error
against a plain pass at the median, of nine in ten and at most, over all layers of the rollouts; and the smallest error
that the vectors of another rollout, or those of the layer above, would have had. A limit must lie between the two where
that is possible. In a mixture of experts it is not: rounding sends a token to another expert where two are nearly tied.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.canary import LIMITS
from persona_atlas.workers.engine import CapturedRollout

from _report import Report
from other_families import SHARING_FAMILIES
from requests_of import engine_settings, generate, requests_of
from tiny_families import FAMILIES, save_tiny_model

_FAMILIES = ("llama", "gemma2", "gpt2", "qwen3_moe", "gpt_oss")
_DTYPES = ("float32", "bfloat16")
_WIDER: dict[str, Any] = {"hidden_size": 128, "n_embd": 128, "intermediate_size": 256, "n_inner": 256}
_SPREAD = 0.09
"""Standard deviation of the weights: 1 / sqrt(width), so that the states neither vanish nor explode over the depth."""


def config_of(family: str, depth: int) -> Any:
    """Make the configuration of a model of a family that is wider than those of the tests, with some depth."""
    config = (FAMILIES | SHARING_FAMILIES)[family]()
    values: dict[str, Any] = config.to_dict()
    wider = {name: size for name, size in _WIDER.items() if name in values}
    layers = "n_layer" if "n_layer" in values else "num_hidden_layers"
    kept = {name: value for name, value in values.items() if name not in {"layer_types", "transformers_version"}}
    return type(config)(**(kept | wider | {layers: depth, "initializer_range": _SPREAD}))


def error_of(engine: BuiltinEngine, row: CapturedRollout, pooling: str, source: CapturedRollout) -> np.ndarray:
    """Return the error at each layer of one pooling's vectors of a rollout, if they were those of another one."""
    array = ("resid_post", pooling)
    vectors = {array: source.vectors_LD[array]} if array in source.vectors_LD else {}
    tokens = {array: source.tokens_KTD[array]} if array in source.tokens_KTD else {}
    canary = engine.canary(replace(row, vectors_LD=vectors, tokens_KTD=tokens))
    assert canary is not None
    return np.asarray(canary.relative_error_L)


def shifted(row: CapturedRollout) -> CapturedRollout:
    """Return a rollout with the vectors of the layer above at every layer but the last."""
    up = {array: np.concatenate([values[1:], values[-1:]]) for array, values in row.vectors_LD.items()}
    return replace(row, vectors_LD=up)


def errors(directory: Path, depth: int, dtype: str, num_rollouts: int) -> Iterator[tuple[str, Sequence[float]]]:
    """Yield each pooling with its errors: median, of nine in ten, at most; another rollout's and layer's at least."""
    settings = engine_settings(directory, layers=range(depth), dtype=dtype, token_layers=range(depth))
    engine = BuiltinEngine(replace(settings, threads=2))
    rows = [row for row in generate(engine, requests_of(2 * num_rollouts)) if row.rollout.num_content_tokens > 1]
    rows = rows[:num_rollouts]
    for _, pooling in (*rows[0].vectors_LD, *rows[0].tokens_KTD):
        own = np.stack([error_of(engine, row, pooling, row) for row in rows])
        figures = [float(np.median(own)), float(np.quantile(own, 0.9)), float(own.max())]
        if pooling == "tokens":
            yield pooling, figures
            continue
        pairs = [
            (row, other)
            for row, other in pairwise(rows)
            if row.rollout.prompt_token_ids != other.rollout.prompt_token_ids
        ]
        figures.append(min(float(error_of(engine, row, pooling, other).min()) for row, other in pairs))
        figures.append(min(float(error_of(engine, row, pooling, shifted(row))[:-1].min()) for row in rows))
        yield pooling, figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every family at every depth in both types.

    Args:
        arguments: Command-line options; None: those of this process.

    Returns:
        The exit status: 1 if a vector differs by more than the limit in float32.
    """
    parser = argparse.ArgumentParser(description="What rounding and mistakes do to captured vectors.")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--families", default=",".join(_FAMILIES), help="families, separated by commas")
    parser.add_argument("--depths", default="4,32", help="numbers of layers, separated by commas")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts that are compared of each model")
    options = parser.parse_args(arguments)
    report, lines = Report(options.json), []
    for family in options.families.split(","):
        for depth in map(int, options.depths.split(",")):
            with tempfile.TemporaryDirectory() as scratch:
                directory = save_tiny_model(Path(scratch), config_of(family, depth))
                for dtype in _DTYPES:
                    for pooling, figures in errors(directory, depth, dtype, options.rollouts):
                        model = f"{family}, {depth} layers, {dtype}"
                        lines.append([model, pooling, *(f"{one:.1e}" for one in figures)])
                        # In 16 bits there is no limit that rounding keeps to in every model.
                        limit = LIMITS[dtype] if dtype == "float32" else None
                        report.most(f"{model}, {pooling}: error", figures[2], "ratio", limit)
    header = ("model", "pooling", "median", "nine in ten", "at most", "another rollout, least", "layer above, least")
    report.table("Relative errors against plain passes", header, lines)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
