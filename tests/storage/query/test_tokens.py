"""Every token of chosen layers, stored ragged: written once, read as it was by us and by Zarr alone, and guarded."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from persona_atlas.jobs.errors import InputError, StoreError, UnitError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.unit_size import TOKENS_PER_CHUNK
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.storage.arrays.codec import round_mantissa
from persona_atlas.storage.arrays.unit_writer import write_unit_result
from persona_atlas.storage.format import layout
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.export_file import FORMATS, write_query
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.run.chunk_index import CHUNK_SCHEMA, ChunkLengths, read_chunks, write_chunks
from persona_atlas.storage.run.commits import committed_units, read_commit, read_commits
from persona_atlas.storage.run.index_keeper import refresh_index
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.verification.garbage import find_garbage, remove_garbage
from persona_atlas.storage.verification.verify import verify_run
from persona_atlas.workers.engine import CapturedRollout
from safetensors.numpy import load_file

from counted import Counted
from fakes import FakeEngine, block_of, small_plan, small_spec, tokens_of
from stored_runs import begin, commit, record_of, store_run, write_unit

TOKEN_LAYERS = (1, 3)
UNIT = "role.pirate.pos.p0.b0"
EMPTY = RolloutAddress("role", "pirate", "pos", 0, 2, 0)


@dataclass
class RaggedEngine(FakeEngine):
    """Responses of very different lengths: some units fill several chunks, some a part of one."""

    token_layers: tuple[int, ...] = TOKEN_LAYERS
    empty: frozenset[RolloutAddress] = frozenset({EMPTY})

    def _answer(self, request: RolloutRequest) -> CapturedRollout:
        address = request.address
        words = (0, 300, 7)[(address.question_index + address.prompt_index) % 3]
        self.more = " more" * (2 * words if address.persona == "poet" else words)
        return super()._answer(request)


def ragged_plan(**capture: object) -> Plan:
    asked = {"poolings": ["response_mean", "tokens"], "token_layers": list(TOKEN_LAYERS)} | capture
    return small_plan(small_spec(capture=asked, sampling={"max_new_tokens": 700}))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return ragged_plan()


@pytest.fixture
def run(store_url: str, plan: Plan) -> Run:
    """A whole run, once in a folder and once on S3."""
    location = store_run(store_url, plan, engine=RaggedEngine())
    refresh_index(location, record_of(plan))
    return open_run(store_url)


@pytest.fixture
def folder_run(tmp_path: Path, plan: Plan) -> Run:
    location = store_run(str(tmp_path / "run"), plan, engine=RaggedEngine())
    refresh_index(location, record_of(plan))
    return open_run(str(tmp_path / "run"))


def expected_of(line: dict) -> np.ndarray:
    """What was captured of a line of the index, as the store rounds it: (tokens, layers, d_model)."""
    names = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
    address = RolloutAddress(*(line[name] for name in names))
    tokens_KTD = tokens_of(address, line["num_content_tokens"], len(TOKEN_LAYERS), 16)
    return round_mantissa(tokens_KTD, 10).transpose(1, 0, 2)


def test_every_rollouts_tokens_come_back_in_address_order(run: Run):
    found = run.activations(layer="all", pooling="tokens")
    assert found.layers == TOKEN_LAYERS
    assert found.offsets is not None
    lines = found.rollouts.to_pylist()
    assert len(lines) == run.index.num_rows - 1, "the empty response has none"
    assert len({line["num_content_tokens"] for line in lines}) >= 4
    assert [line["row"] for line in lines] != sorted(line["row"] for line in lines)
    parts = found.per_rollout()
    assert np.diff(found.offsets).tolist() == [line["num_content_tokens"] for line in lines]
    for line, part in zip(lines, parts, strict=True):
        assert np.array_equal(part, expected_of(line))
    pooled = run.query(layer="all")
    assert pooled.offsets is None
    assert pooled.rollouts.equals(found.rollouts)


def test_filters_layers_and_blocks_give_the_same_tokens(folder_run: Run):
    one = folder_run.query(layer=3, pooling="tokens", persona="p*", question=[0, 2])
    assert one.layers == (3,)
    assert one.shape == (sum(one.rollouts["num_content_tokens"].to_pylist()), 16)
    whole = one.read()
    for line, part in zip(whole.rollouts.to_pylist(), whole.per_rollout(), strict=True):
        assert np.array_equal(part, expected_of(line)[:, 1])
    blocks = list(one.blocks(max_bytes=1))
    assert len(blocks) > 3
    assert np.array_equal(np.concatenate([values for _, values in blocks]), whole.values)
    assert [len(values) for _, values in blocks] == [
        sum(lines["num_content_tokens"].to_pylist()) for lines, _ in blocks
    ]
    swapped = folder_run.activations(layer=[3, 1], pooling="tokens", persona="poet")
    assert swapped.layers == (3, 1)
    assert np.array_equal(
        swapped.values[:, 0], folder_run.activations(layer=3, pooling="tokens", persona="poet").values
    )


def test_nothing_and_one_are_as_many_as_they_are(folder_run: Run):
    nothing = folder_run.activations(layer=1, pooling="tokens", persona="nobody")
    assert (nothing.values.shape, nothing.per_rollout()) == ((0, 16), [])
    one = folder_run.activations(layer=1, pooling="tokens", persona="poet", prompt=0, question=0)
    (part,) = one.per_rollout()
    assert np.array_equal(part, one.values)


def test_middle_is_the_nearest_layer_whose_tokens_are_kept_and_no_other_is_given(folder_run: Run):
    assert folder_run.query(pooling="tokens").layers == (1,)
    with pytest.raises(InputError) as caught:
        folder_run.query(layer=2, pooling="tokens")
    assert (caught.value.code, caught.value.field) == ("no_such_layer", "layer")
    assert folder_run.query(layer=2).layers == (2,)


def test_a_run_without_tokens_names_what_it_holds(tmp_path: Path):
    store_run(str(tmp_path / "run"), small_plan())
    with pytest.raises(InputError, match="resid_post/response_mean") as caught:
        open_run(str(tmp_path / "run")).query(pooling="tokens")
    assert caught.value.code == "not_captured"


def test_zarr_alone_reads_them_with_the_index_or_with_a_commit_record(folder_run: Run):
    root = Path(folder_run.url)
    array = zarr.open_array(root, path="activations/resid_post/tokens", mode="r")
    assert array.attrs["layers"] == list(TOKEN_LAYERS)
    assert array.shards is not None
    index = {line["row"]: line for line in pq.read_table(root / "index.parquet").to_pylist()}
    for path in sorted((root / "commits").glob("*.json")):
        manifest = json.loads(path.read_text())["manifest"]
        first = manifest["row_block"] * array.shards[0]
        row = manifest["row_block"] * folder_run.record.rows_per_block
        for count in manifest["content_tokens"]:
            if count:
                assert np.array_equal(np.asarray(array[first : first + count]), expected_of(index[row]))
            first, row = first + count, row + 1
        # Behind the last token there is nothing.
        rest = np.asarray(array[first : (manifest["row_block"] + 1) * array.shards[0]])
        assert np.isnan(rest).all()


def test_a_layer_and_a_rollout_cost_their_share_of_the_bytes(folder_run: Run):
    poet = folder_run.rollouts(persona="poet", prompt=0)
    (unit_id,) = poet["unit_id"].unique().to_pylist()
    manifest = read_commit(folder_run.location, unit_id).manifest
    block = next(block for block in manifest.blocks if block.pooling == "tokens")
    num_chunks = -(-manifest.num_response_tokens // TOKENS_PER_CHUNK)
    assert num_chunks == 3
    assert len(block.chunk_bytes) == num_chunks * len(TOKEN_LAYERS)

    def bytes_of(**filters: object) -> tuple[int, int]:
        asked = Counted(folder_run.location)
        fresh = Run(asked, folder_run.record)
        query = fresh.query(pooling="tokens", persona="poet", prompt=0, **filters)  # pyright: ignore[reportArgumentType]
        query.read()
        ranged = [one for one in asked.asked if one.path == block.path]
        return len(ranged), sum(one.num_bytes for one in ranged)

    assert bytes_of(layer="all") == (1, sum(block.chunk_bytes))
    assert bytes_of(layer=3) == (1, sum(block.chunk_bytes[num_chunks:]))
    # The first rollout is short: one chunk holds it.
    assert bytes_of(layer=1, question=0) == (1, block.chunk_bytes[0])


def test_an_object_takes_what_its_tokens_take_and_not_what_there_is_room_for(folder_run: Run, plan: Plan):
    assert plan.tokens_per_block == 2304
    sizes = {
        manifest.num_response_tokens: next(b.num_bytes for b in manifest.blocks if b.pooling == "tokens")
        for manifest in (c.manifest for c in read_commits(folder_run.location, sorted(folder_run.committed)))
    }
    large = {tokens: num_bytes for tokens, num_bytes in sizes.items() if tokens > TOKENS_PER_CHUNK}
    assert len(large) >= 2
    for tokens, num_bytes in large.items():
        assert 1.5 < num_bytes / (tokens * len(TOKEN_LAYERS) * 16) < 2.6


def damaged(run: Run, how: str) -> str:
    manifest = read_commit(run.location, UNIT).manifest
    (path,) = [block.path for block in manifest.blocks if block.pooling == "tokens"]
    file = Path(run.url) / path
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
        return path
    if how == "flipped":
        data[len(data) // 3] ^= 1
    file.write_bytes(data[:-1] if how == "truncated" else data)
    return path


@pytest.mark.parametrize(("how", "code"), [("flipped", "bad_object"), ("truncated", "bad_object")])
def test_verify_names_a_damaged_object_and_a_reader_refuses_it(folder_run: Run, how: str, code: str):
    assert verify_run(folder_run.location).problems == []
    path = damaged(folder_run, how)
    found = verify_run(folder_run.location)
    assert [(p.kind, p.code, p.path, p.unit_id) for p in found.problems] == [("damage", code, path, UNIT)]


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_a_reader_refuses_what_is_damaged(folder_run: Run, how: str):
    path = damaged(folder_run, how)
    with pytest.raises(StoreError) as caught:
        folder_run.activations(layer="all", pooling="tokens")
    assert (caught.value.file or "").endswith(path)
    assert [problem.path for problem in verify_run(folder_run.location).problems] == [path]


def test_a_table_with_more_chunks_a_layer_than_there_are_spoils_no_reading(
    folder_run: Run, monkeypatch: pytest.MonkeyPatch
):
    truth = folder_run.activations(layer="all", pooling="tokens").values
    monkeypatch.setattr(ChunkLengths, "_MAX_COMMITS_READ", 2)
    lines = read_chunks(folder_run.location).to_pylist()
    long = [line for line in lines if len(line["chunk_bytes"]) == 3 * len(TOKEN_LAYERS)]
    assert {line["pooling"] for line in long} == {"tokens"}
    for line in long:
        # One more for each layer: the asked chunks of two layers no longer lie beside each other.
        line["chunk_bytes"] = [100, *line["chunk_bytes"], 100]
    write_chunks(folder_run.location, pa.Table.from_pylist(lines, schema=CHUNK_SCHEMA))
    found = open_run(folder_run.url).activations(layer="all", pooling="tokens")
    assert np.array_equal(found.values, truth)


def test_verify_sees_an_array_that_is_cut_otherwise(folder_run: Run):
    file = Path(folder_run.url) / "activations/resid_post/tokens/zarr.json"
    metadata = json.loads(file.read_text())
    metadata["codecs"][0]["configuration"]["chunk_shape"][0] //= 2
    file.write_text(json.dumps(metadata))
    assert [problem.code for problem in verify_run(folder_run.location).problems] == ["bad_array"]


def test_dead_attempts_tokens_are_found_and_deleted(store_url: str, plan: Plan):
    location = open_location(store_url)
    with acquire(location, 3) as lease:
        begin(location, plan, lease)
        first, second, other = list(lease.row_blocks)
        dead = write_unit(location, plan, UNIT, first, RaggedEngine())
        commit(location, lease, write_unit(location, plan, UNIT, second, RaggedEngine()))
        waiting = write_unit(location, plan, "role.poet.pos.p0.b0", other, RaggedEngine())
    live = [c.manifest for c in read_commits(location, sorted(committed_units(location)))]
    found = {thing.path: thing.is_removable for thing in find_garbage(location, live)}
    tokens = layout.shard_path("resid_post", "tokens", first)
    assert tokens in {stored.path for stored in dead.objects}
    assert found == {stored.path: True for stored in dead.objects} | {stored.path: False for stored in waiting.objects}
    remove_garbage(location, record_of(plan), find_garbage(location, live))
    assert location.size(tokens) is None
    assert len(open_run(store_url).activations(layer="all", pooling="tokens").per_rollout()) == 2


@pytest.mark.parametrize("change", ["nan", "inf", "one too few", "too many for the block"])
def test_tokens_that_cannot_be_right_are_never_written(tmp_path: Path, plan: Plan, change: str):
    location = open_location(str(tmp_path / "run"))
    block = block_of(plan, UNIT, 0, RaggedEngine())
    (name,) = block.tokens_NKD
    tokens_NKD, room = block.tokens_NKD[name], plan.tokens_per_block
    if change == "one too few":
        tokens_NKD = tokens_NKD[1:]
    elif change == "too many for the block":
        room = TOKENS_PER_CHUNK
    else:
        tokens_NKD = tokens_NKD.copy()
        tokens_NKD[len(tokens_NKD) - 1, 1, 3] = float(change)
    with pytest.raises(UnitError) as caught:
        write_unit_result(
            location,
            replace(block, tokens_NKD={name: tokens_NKD}),
            rows_per_block=plan.rows_per_block,
            mantissa_bits=10,
            worker="w",
            tokens_per_block=room,
        )
    codes = {"one too few": "rows_mixed", "too many for the block": "too_many_tokens"}
    assert caught.value.code == codes.get(change, "not_finite")
    assert location.sizes("") == {}
    if change in ("nan", "inf"):
        assert str(block.rollouts[1].address) in caught.value.message


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_exports_say_where_each_rollout_begins(folder_run: Run, tmp_path: Path, suffix: str):
    asked = folder_run.query(layer="all", pooling="tokens", persona="p*")
    truth = asked.read()
    assert truth.offsets is not None
    path = tmp_path / f"out{suffix}"
    write_query(asked, path)
    if suffix == ".parquet":
        table = pq.read_table(path)
        for line, part in zip(table.to_pylist(), truth.per_rollout(), strict=True):
            assert np.array_equal(np.array(line["activations"], dtype=np.float32).reshape(part.shape), part)
        return
    with np.load(path) if suffix == ".npz" else _opened(path) as held:
        assert np.array_equal(held["activations"], truth.values)
        assert np.array_equal(held["offsets"], truth.offsets)


class _opened(dict):  # noqa: N801 - a context manager over a file of tensors
    def __init__(self, path: Path) -> None:
        super().__init__(load_file(path))

    def __enter__(self) -> _opened:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def test_a_format_without_room_for_offsets_is_refused_by_name(folder_run: Run, tmp_path: Path):
    with pytest.raises(InputError, match=r"\.npy") as caught:
        write_query(folder_run.query(layer=1, pooling="tokens"), tmp_path / "out.npy")
    assert caught.value.field == "--out"
    others = [suffix for suffix in FORMATS if suffix != ".npy"]
    assert all(suffix in (caught.value.hint or "") for suffix in others)
    assert not (tmp_path / "out.npy").exists()


def test_a_dataset_leaves_them_out(folder_run: Run):
    pytest.importorskip("xarray")
    assert list(folder_run.to_xarray().data_vars) == ["response_mean"]


def test_tokens_alone_are_a_whole_run(tmp_path: Path):
    plan = ragged_plan(poolings=["tokens"])
    assert plan.layers == TOKEN_LAYERS
    location = store_run(str(tmp_path / "run"), plan, engine=RaggedEngine(arrays=(), layers=TOKEN_LAYERS))
    refresh_index(location, record_of(plan))
    run = open_run(str(tmp_path / "run"))
    assert verify_run(location).problems == []
    found = run.activations(layer="all", pooling="tokens")
    for line, part in zip(found.rollouts.to_pylist(), found.per_rollout(), strict=True):
        assert np.array_equal(part, expected_of(line))
