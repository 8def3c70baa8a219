"""Paths of a store's objects, relative to the run's URL. Pure strings.

run.json                             spec, model, shapes; written once, and marked when the run first grows
units-<sha256>.parquet               every planned unit, or those of an addition; written once, before the record
additions/<number>.json              what was added to the run: its spec and its units; written once
interventions-<sha256>.parquet       edits of the residual stream of all rollouts, with their vectors; only if any
skipped.jsonl                        what was left out of the input because it cannot be read; only if there was any
drivers/<generation>.json            a driver's lease: may it commit, and which row blocks may it assign
status/<generation>.json             that driver's last status, for people
activations/<hook_point>/<pooling>   Zarr array (row, layer, d_model), a shard per row block
rollouts/<unit>-<row_block>.parquet  texts, token ids and token counts of one attempt
commits/<unit>.json                  commit record: the attempt that readers see; written after its objects
index.parquet                        every committed rollout; a cache of the commit records
chunks.parquet                       lengths of the inner chunks of every committed shard; a cache too
recent/<generation>.parquet          commit records that a driver has written since the index; a cache too
sums/<hook_point>/<pooling>/<name>   counts, means and squares of one persona's rollouts, by score; written once
projections/<hook_point>/<pooling>/<name>  projections of one persona's rollouts on one axis; written once
scores/<judge>/<unit>.parquet        a judge's scores of one unit, with its replies; replaced as more is judged
scores/<judge>/judge.json            what the judge is: model, server, digests of its rubrics
verdicts/<rubric>/<judge>/<unit>.parquet  labels that a judge gave the replies of one unit; replaced as more is judged
verdicts/<rubric>/<judge>/judge.json      what the judge is, as for scores
analysis/<reduction>-<random>/       Zarr group of one reduction
analysis/<reduction>.json            path and checksums of a complete reduction; written once, after the group
analysis/current.json                a copy of the newest reduction's record; written last
withdrawn/<name>-<hash>              a commit record or other record of damaged objects that repair took out of the run
report.html                          the report of that reduction
vectors-only.json                    marks a copy of a run that has its vectors and not its rollouts

A store of imported vectors has no run.json; instead, beside ``analysis/``:
vectors.json                         where the vectors come from, model and shapes; written last
capping_config.pt                    capping settings of a released directory, as they were published
"""

from __future__ import annotations

LAYOUT_VERSION = 2
"""Increased when an older reader would misread a new store, or this one an older store."""

GROWN_LAYOUT_VERSION = 3
"""That of a run with additions. Versions that know nothing of additions refuse it instead of taking added units for
strangers; runs that never grew keep ``LAYOUT_VERSION``, which those versions read."""

EDITED_LAYOUT_VERSION = 4
"""That of a run with interventions, whether it has grown or not. Versions that know nothing of interventions refuse it;
they would recompute and continue it without them."""

DIALOGUE_LAYOUT_VERSION = 5
"""That of a run whose conversations are generated turn by turn, with interventions or not. Versions that know nothing
of such runs refuse it instead of taking its record for a damaged one."""

LAYOUT_VERSIONS = (LAYOUT_VERSION, GROWN_LAYOUT_VERSION, EDITED_LAYOUT_VERSION, DIALOGUE_LAYOUT_VERSION)
"""Those that this version reads."""

RUN_RECORD = "run.json"
VECTORS_RECORD = "vectors.json"
CAPPING_CONFIG = "capping_config.pt"
VECTORS_ONLY = "vectors-only.json"
SKIPPED = "skipped.jsonl"
INDEX = "index.parquet"
CHUNKS = "chunks.parquet"
ACTIVATIONS = "activations"
ROLLOUTS = "rollouts"
RECENT = "recent"
SCORES = "scores"
VERDICTS = "verdicts"
ADDITIONS = "additions"
COMMITS = "commits"
DRIVERS = "drivers"
STATUS = "status"
SUMS = "sums"
PROJECTIONS = "projections"
ANALYSIS = "analysis"
CURRENT_REDUCTION = "analysis/current.json"
WITHDRAWN = "withdrawn"
REPORT = "report.html"


def units_path(sha256: str) -> str:
    """Path of the list of planned units. It contains the list's checksum, so that no other list overwrites it."""
    return f"units-{sha256[:16]}.parquet"


def edits_path(sha256: str) -> str:
    """Path of the table of a run's interventions. It contains the table's checksum, as that of the units does."""
    return f"interventions-{sha256[:16]}.parquet"


def addition_path(number: int) -> str:
    """Path of the record of one addition, counted from 1."""
    return f"{ADDITIONS}/{number:06d}.json"


def array_path(hook_point: str, pooling: str) -> str:
    """Path of the Zarr array of one hook point and pooling."""
    return f"{ACTIVATIONS}/{hook_point}/{pooling}"


def shard_path(hook_point: str, pooling: str, row_block: int) -> str:
    """Path of a row block's shard: Zarr's chunk key, as a shard spans all layers and d_model."""
    return f"{array_path(hook_point, pooling)}/c/{row_block}/0/0"


def rollouts_path(unit_id: str, row_block: int) -> str:
    """Path of an attempt's table of rollouts. It contains the row block, which no other attempt has."""
    return f"{ROLLOUTS}/{unit_id}-{row_block}.parquet"


def commit_path(unit_id: str) -> str:
    """Path of a unit's commit record."""
    return f"{COMMITS}/{unit_id}.json"


def withdrawn_path(path: str, sha256: str) -> str:
    """Path under which an object is kept that ``repair`` took out of the run; ``sha256`` is that of its bytes."""
    folder, _, name = path.rpartition("/")
    return f"{WITHDRAWN}/{folder}/{name}-{sha256[:12]}" if folder else f"{WITHDRAWN}/{name}-{sha256[:12]}"


def scores_path(judge: str, unit_id: str) -> str:
    """Path of a judge's scores of one unit."""
    return f"{SCORES}/{judge}/{unit_id}.parquet"


def judge_path(judge: str) -> str:
    """Path of the record of a judge."""
    return f"{SCORES}/{judge}/judge.json"


def verdict_folder(rubric: str, judge: str, part: str = "") -> str:
    """Folder of the labels that a judge gave by a rubric; ``part`` is the setting in the folder of a sweep."""
    return f"{VERDICTS}/{rubric}/{judge}/{part}".rstrip("/")


def recent_path(generation: int) -> str:
    """Path of the commit records that the driver of one generation has written lately."""
    return f"{RECENT}/{generation:06d}.parquet"


def driver_path(generation: int) -> str:
    """Path of the lease of one generation."""
    return f"{DRIVERS}/{generation:06d}.json"


def status_path(generation: int) -> str:
    """Path of the status of one generation's driver."""
    return f"{STATUS}/{generation:06d}.json"


def reduction_path(name: str) -> str:
    """Path of a reduction's Zarr group; ``name`` is the reduction's id and a random part."""
    return f"{ANALYSIS}/{name}"


def reduction_record_path(reduction_id: str) -> str:
    """Path of the record of a complete reduction; written once, after its group."""
    return f"{ANALYSIS}/{reduction_id}.json"


def partial_folder(folder: str, hook_point: str, pooling: str) -> str:
    """Path of the folder of a run's partial results; ``folder`` is ``SUMS`` or ``PROJECTIONS``."""
    return f"{folder}/{hook_point}/{pooling}"


def partial_path(folder: str, hook_point: str, pooling: str, persona: str, digest: str) -> str:
    """Path of a partial result.

    Args:
        folder: ``SUMS`` or ``PROJECTIONS``.
        hook_point: Hook point of the array.
        pooling: Pooling of the array.
        persona: Kind, name and polarity, joined with dashes.
        digest: Digest of what it was made of, as hexadecimal digits.
    """
    return f"{partial_folder(folder, hook_point, pooling)}/{persona}-{digest[:24]}"
