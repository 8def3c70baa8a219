"""Measure the reduction of a run, in comparison with reading and decoding its rollouts alone.

    python benchmarks/reduce.py [--quick] [--json]

The store is a directory. Beside it, the usual way is timed on the same values: one file per persona with every rollout
in bfloat16, loaded whole, stacked and averaged, then loaded again and projected.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.analysis.reduction.budget import threads
from persona_atlas.analysis.reduction.cast import Cast
from persona_atlas.analysis.reduction.mapping import map_in_threads
from persona_atlas.analysis.reduction.partial_sums import StoredSums
from persona_atlas.analysis.reduction.projections import StoredProjections, axis_digest
from persona_atlas.analysis.reduction.rollouts import personas_of
from persona_atlas.analysis.reduction.settings import make_settings
from persona_atlas.analysis.reduction.unit_work import ArrayOfRun, UnitLengths
from persona_atlas.storage.arrays.codec import decode_chunk
from persona_atlas.storage.format import layout
from persona_atlas.storage.locations.location import Location
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.workers.models.limits import usable_cores

from _persona_run import ARRAY, PersonaRun, PersonaShape
from _report import Report, Timed, interleaved, median_ratio

_PASS_FLOOR = 0.7
_AGAIN_LIMIT = 0.05
_ADDITIONS = 3
"""How often units are added and the run reduced again; the median counts."""


class Passes:
    """The passes of a reduction over all rollouts of a run, each alone.

    Args:
        run: The run; it is reduced first.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._location: Location = run.location
        self._array = ArrayOfRun(run.record, *ARRAY)
        self._lengths = UnitLengths(run, self._array)
        self._cast = Cast(make_settings(run), personas_of(run.with_vector(run.index), run.record.rows_per_block))
        reduction = reduce_run(run)
        record = self._location.read(layout.reduction_record_path(reduction.reduction_id))
        self._group = str(json.loads(record or b"{}")["path"])

    def forget(self) -> None:
        """Delete all partial results."""
        for folder in (layout.SUMS, layout.PROJECTIONS):
            self._location.delete(self._location.sizes(folder))

    def decode(self) -> None:
        """Read and decode every rollout, in as many threads as the passes, and compute nothing."""
        shape = (self._array.num_layers, self._array.rows_per_block, self._array.d_model)
        units = [unit for persona in self._cast.personas for unit in persona.units]
        to_read = self._lengths.to_read(units)

        def read(number: int) -> None:
            lengths = to_read.lengths[number][:, 0].tolist()
            data = self._location.read_range(layout.shard_path(*ARRAY, units[number].row_block), 0, sum(lengths))
            assert data is not None
            view, end = memoryview(data), 0
            for length in lengths:
                begin, end = end, end + length
                decode_chunk(view[begin:end], *shape[1:])

        with ThreadPoolExecutor(threads(*shape, 2, usable_cores())) as pool:
            for _ in pool.map(read, range(len(units))):
                pass

    def sums(self) -> None:
        """Average every persona."""
        stored = StoredSums(self._location, self._array, self._lengths, map_in_threads, usable_cores())
        stored.prepare(self._cast.personas, set(), None)

    def projections(self) -> None:
        """Project every rollout."""
        stored = StoredProjections(
            self._location,
            self._array,
            self._lengths,
            map_in_threads,
            usable_cores(),
            axis_digest(self._cast),
            self._group,
        )
        stored.prepare(self._cast.everybody, set(), None)


def passes(report: Report, url: str, shape: PersonaShape, repeats: int) -> None:
    """Compare each pass over the rollouts with reading and decoding them alone."""
    passes = Passes(open_run(url))
    tasks = {"reading and decoding alone": passes.decode, "averaging": passes.sums, "projecting": passes.projections}
    timed = {name: Timed() for name in tasks}
    for number in range(repeats + 1):
        for name in list(tasks) if number % 2 else list(tasks)[::-1]:
            # What is there is not computed again, and deleting it is not part of the pass.
            passes.forget()
            timed[name].add(tasks[name])
    for rounds in timed.values():
        # The first round has warmed up.
        del rounds.seconds[0], rounds.processor_s[0]
    alone = timed["reading and decoding alone"]
    rows = [
        (
            name,
            f"{statistics.median(rounds.seconds):.2f}",
            f"{4e-9 * shape.num_values / statistics.median(rounds.seconds):.2f}",
            f"{median_ratio(alone.seconds, rounds.seconds):.2f}",
            f"{median_ratio(alone.processor_s, rounds.processor_s):.2f}",
        )
        for name, rounds in timed.items()
    ]
    report.table(f"{shape}", ("pass", "s", "GB/s of float32", "of decoding alone", "in processor time"), rows)
    for name in ("averaging", "projecting"):
        ratio = median_ratio(alone.seconds, timed[name].seconds)
        report.least(f"{name}, {shape}: of reading and decoding alone", ratio, "ratio", _PASS_FLOOR)


def again(report: Report, made: PersonaRun, limit: float | None) -> None:
    """Reduce, add one per cent of units, and reduce again, some times.

    New units of traits cost what is new. New units of roles change the axis, and with it the projection of every
    rollout, by its product with the difference of the axes. That difference comes from the new rollouts and has any
    direction: no numbers that were kept of a rollout, fewer than its coordinates, give the product. So every rollout is
    read and decoded once more, and the limit is on all the rest.

    Args:
        report: Takes the figures.
        made: The run.
        limit: Largest share of the first time; None for a run too short for it.
    """
    url = made.location.url
    shape = made.shape
    passes = Passes(open_run(url))
    passes.forget()
    _forget_reductions(made.location)
    first_s = _seconds(lambda: reduce_run(open_run(url)))
    unchanged_s = _seconds(lambda: reduce_run(open_run(url)))
    report.most("reducing again with nothing new, of the first time", unchanged_s / first_s, "ratio", _AGAIN_LIMIT)
    for what in ("trait", "role"):
        numbers = [number for number, address in enumerate(shape.personas) if address[0] == what]
        each = max(1, round(0.01 * shape.units * len(shape.personas) / len(numbers)))
        up_to_pca_s, rest_s, all_s = [], [], []
        for addition in range(_ADDITIONS):
            begin = shape.units + addition * each
            for number in numbers:
                made.add(number, range(begin, begin + each))
            steps = _Steps()
            all_s.append(_seconds(lambda steps=steps: reduce_run(open_run(url), say=steps.say)))
            up_to_pca_s.append(steps.before("Projecting"))
            rest_s.append(all_s[-1] - steps.between("Projecting", "Computing thresholds"))
        name = f"reducing again after {each * len(numbers)} new units of {what}s, {shape}"
        share = statistics.median(up_to_pca_s) / first_s
        report.most(f"{name}: up to axis and PCA, of the first time", share, "ratio", limit)
        share = statistics.median(all_s) / first_s
        report.most(f"{name}: all of it, of the first time", share, "ratio", None if what == "role" else limit)
        if what == "role":
            share = statistics.median(rest_s) / first_s
            report.most(f"{name}: all but projecting every rollout, of the first time", share, "ratio", limit)
    alone_s = _seconds(passes.decode)
    report.say(
        f"The first time: {first_s:.2f} s. Of that, reading and decoding every rollout once is {alone_s / first_s:.2f}."
    )


class _Steps:
    """Notes when each step of a reduction begins."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._steps: list[tuple[str, float]] = []

    def say(self, line: str) -> None:
        """Take a line of progress."""
        self._steps.append((line, time.perf_counter() - self._began))

    def before(self, step: str) -> float:
        """Return the seconds before a step began."""
        return next(seconds for line, seconds in self._steps if line.startswith(step))

    def between(self, step: str, next_step: str) -> float:
        """Return the seconds from the beginning of a step to that of another."""
        return self.before(next_step) - self.before(step)


def judged(report: Report, made: PersonaRun, limit: float | None) -> None:
    """Judge every rollout, reduce, judge one trait anew, and reduce again.

    New scores cost a new average of the personas that they are of. Those of a trait leave the axis as it is; those of a
    role change it, and with it every projection, as its new units do.

    Args:
        report: Takes the figures.
        made: The run, reduced without scores.
        limit: Largest share of the first time, beyond the share of the scores; None for a run too short for it.
    """
    url, trait = made.location.url, next(name for kind, name, _ in made.shape.personas if kind == "trait")
    all_scored = made.judge("judge")
    reduce_run(open_run(url), judge="none")
    first_s = _seconds(lambda: reduce_run(open_run(url)))
    again_s, scored = [], 0
    for turn in range(1, _ADDITIONS + 1):
        scored = made.judge("judge", turn, trait)
        again_s.append(_seconds(lambda: reduce_run(open_run(url))))
    share = statistics.median(again_s) / first_s
    report.most(
        f"reducing again after one trait, {scored / all_scored:.3f} of the scores, was judged anew: of the first time",
        share,
        "ratio",
        None if limit is None else scored / all_scored + limit,
    )


def usual_way(report: Report, made: PersonaRun, folder: Path, repeats: int) -> None:
    """Time the usual way on the same values."""
    import torch

    shape = made.shape
    for number, address in enumerate(shape.personas):
        tensor = torch.from_numpy(made.values(number)).to(torch.bfloat16)
        rollouts = {f"p{unit}_q{row}": tensor[row] for unit in range(shape.units) for row in range(shape.rollouts)}
        # A copy of each, as a pipeline saves them: views of one tensor would be stored once.
        torch.save({name: value.clone() for name, value in rollouts.items()}, folder / f"{'-'.join(address)}.pt")

    def load(address: tuple[str, str, str]) -> Any:
        found = torch.load(folder / f"{'-'.join(address)}.pt", weights_only=True)
        return torch.stack([value.float() for value in found.values()])

    def reduce() -> None:
        means = {address: load(address).mean(dim=0) for address in shape.personas}
        roles = torch.stack([mean for address, mean in means.items() if address[0] == "role"])
        axis_LD = means[shape.personas[0]] - roles.mean(dim=0)
        axis_LD /= axis_LD.norm(dim=1, keepdim=True)
        projections = [torch.einsum("nld,ld->nl", load(address), axis_LD).numpy() for address in shape.personas]
        np.percentile(np.concatenate(projections), [1, 25, 50, 75], axis=0)

    def ours() -> None:
        run = open_run(made.location.url)
        _forget_reductions(made.location)
        for partial in (layout.SUMS, layout.PROJECTIONS):
            made.location.delete(made.location.sizes(partial))
        reduce_run(run)

    timed = interleaved({"usual": reduce, "ours": ours}, repeats)
    ratio = median_ratio(timed["ours"].seconds, timed["usual"].seconds)
    report.most(
        f"whole reduction, {shape}: time, of a file per persona loaded whole (means, axis, thresholds only)",
        ratio,
        "ratio",
    )
    one = 4 * shape.units * shape.rollouts * shape.layers * shape.d_model / 2**20
    report.say(f"A persona in memory as float32, the usual way: {one:.0f} MiB.")


def memory(report: Report, folder: Path, shape: PersonaShape, *, is_judged: bool = False) -> None:
    """Measure the most memory of a process that reduces a wide run."""
    made = PersonaRun(str(folder), shape)
    if is_judged:
        made.judge("judge")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from persona_atlas.storage.query.run import open_run\n"
        "from persona_atlas.analysis.reduce import reduce_run\n"
        # Not ru_maxrss, which a process inherits from the one that started it.
        "def peak():\n"
        "    text = Path('/proc/self/status').read_text()\n"
        "    return text.split('VmHWM:')[1].split()[0]\n"
        "run = open_run(sys.argv[1])\n"
        "before = peak()\n"
        "reduce_run(run)\n"
        "print(before, peak())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, made.location.url], capture_output=True, text=True, check=True, env=os.environ
    )
    before, peak = (int(number) / 2**20 for number in done.stdout.split())
    report.say(f"{shape}: {before:.2f} GiB before the reduction.")
    report.most(f"memory of a reduction{', judged' * is_judged}, {shape}", peak, "GiB", 1.0)


def _forget_reductions(location: Location) -> None:
    location.delete(location.sizes(layout.ANALYSIS))


def _seconds(task: Callable[[], object]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def main() -> int:
    """Measure everything.

    Returns:
        The exit status: 1 if a figure does not meet its floor.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="smaller runs, fewer repeats")
    options = parser.parse_args()
    report = Report(options.json)
    repeats = 3 if options.quick else 7
    # Roles and traits in the proportion of the whole catalog.
    narrow = PersonaShape(*((4, 3) if options.quick else (11, 10)), 25, 48, 30, 576)
    wide = PersonaShape(*((4, 3) if options.quick else (11, 10)), 25, 48, 4, 8192)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, shape in (("narrow", narrow), ("wide", wide)):
            made = PersonaRun(str(folder / name), shape)
            passes(report, str(folder / name), shape, repeats)
            if name == "narrow":
                (folder / "files").mkdir()
                usual_way(report, made, folder / "files", min(repeats, 3))
        # Of as many rollouts as the whole catalog has, nearly: a reduction takes the better part of a second, whatever
        # it reads, to write its arrays.
        long = replace(wide, units=20 if options.quick else 480)
        grown = PersonaRun(str(folder / "long"), long, spare=48)
        limit = None if options.quick else _AGAIN_LIMIT
        again(report, grown, limit)
        judged(report, grown, limit)
        layers = 24 if options.quick else 80
        large = replace(wide, roles=4, traits=2, units=2, layers=layers, d_model=8192)
        memory(report, folder / "large", large)
        memory(report, folder / "judged", replace(large, roles=12), is_judged=True)
        # What follows from the sums is computed a layer at a time, of however many layers.
        catalog = PersonaShape(*((27, 24) if options.quick else (275, 240)), 1, 48, 2, 8192)
        memory(report, folder / "catalog", catalog, is_judged=True)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
