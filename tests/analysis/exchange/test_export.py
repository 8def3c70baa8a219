"""Export: the released files with their signs and types, safetensors, and what is refused without a trace."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from persona_atlas.analysis.exchange.export import ExportFormat, export_vectors
from persona_atlas.analysis.summary import summarise
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.derived.reductions import write_reduction
from persona_atlas.storage.query.run import Run, open_run
from safetensors import safe_open

from command_line import Answered, Refused
from planted_vectors import LAYERS, ROLES, TRAITS, WIDTH, Planted, plant, planted_run
from stored_runs import small_run


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    folder = tmp_path_factory.mktemp("released") / "model"
    export_vectors(run, folder, "assistant-axis")
    return folder


def load(path: Path):
    return torch.load(path, map_location="cpu", weights_only=True)


def test_the_released_files_have_their_names_types_and_shapes(released: Path, planted: Planted):
    vectors = ["assistant_axis.pt", "default_vector.pt"]
    vectors += [f"role_vectors/{name}.pt" for name in ROLES] + [f"trait_vectors/{name}.pt" for name in TRAITS]
    files = {path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_file()}
    assert files == {*vectors, "capping_config.pt"}
    for name in vectors:
        tensor = load(released / name)
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.bfloat16, (LAYERS, WIDTH)), name
    axis = planted.reduction.axis
    assert axis is not None
    assert np.allclose(load(released / "assistant_axis.pt").float().numpy(), axis, rtol=2**-8)


def test_the_default_lies_above_every_role_on_the_released_axis(released: Path, planted: Planted):
    axis_LD = load(released / "assistant_axis.pt").double()
    default_L = (load(released / "default_vector.pt").double() * axis_LD).sum(1)
    for name in ROLES:
        assert ((load(released / f"role_vectors/{name}.pt").double() * axis_LD).sum(1) < default_L).all()
    along_L = (axis_LD.numpy() * planted.direction_LD).sum(axis=1) / axis_LD.norm(dim=1).numpy()
    assert (along_L > 0.99).all()


def test_the_released_cap_is_the_floor_on_the_axis(released: Path, planted: Planted):
    config = load(released / "capping_config.pt")
    reduction = planted.reduction
    assert reduction.floor_on_axis is not None
    for experiment in config["experiments"]:
        window, _, label = experiment["id"].partition("-")
        first, end = map(int, window.removeprefix("layers_").split(":"))
        assert len(experiment["interventions"]) == end - first
        q = reduction.threshold_labels.index(label)
        for layer, intervention in zip(range(first, end), experiment["interventions"], strict=True):
            vector = config["vectors"][intervention["vector"]]
            assert vector["layer"] == layer
            u_D, cap = vector["vector"].double().numpy(), intervention["cap"]
            v_D, floor = planted.direction_LD[layer], float(reduction.floor_on_axis[q, layer])
            assert np.linalg.norm(u_D) == pytest.approx(1, abs=1e-6)
            assert float(u_D @ v_D) < -0.99
            rollouts_ND = planted.rollouts_NLD[:, layer]
            capped_ND = rollouts_ND - np.maximum(rollouts_ND @ u_D - cap, 0)[:, None] * u_D
            on_axis_N = -(rollouts_ND @ u_D)
            floored_ND = rollouts_ND - np.minimum(on_axis_N - floor, 0)[:, None] * -u_D
            assert np.allclose(capped_ND, floored_ND, atol=1e-4)
            share_below_cap = 1 - np.mean(np.abs(capped_ND - rollouts_ND).max(axis=1) > 1e-4)
            assert share_below_cap == pytest.approx(float(label[1:]), abs=0.02)
    assert {experiment["id"].partition("-")[2] for experiment in config["experiments"]} == {
        "p0.01",
        "p0.25",
        "p0.5",
        "p0.75",
    }


def test_safetensors_hold_every_array_and_say_what_they_are(run: Run, planted: Planted, tmp_path: Path):
    found = export_vectors(run, tmp_path / "out", "safetensors")
    assert found.notes == ("Projections of single rollouts stay in the store.",)
    with safe_open(tmp_path / "out" / "vectors.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {
            "role_vectors",
            "role_counts",
            "default_vector",
            "trait_vectors",
            "axis",
            "cap_on_minus_axis",
            "floor_on_axis",
        }
        for name in file.keys():  # noqa: SIM118
            assert np.array_equal(file.get_tensor(name), getattr(planted.reduction, name)), name
    assert (metadata["model"], metadata["d_model"]) == (run.model_name, str(WIDTH))
    assert json.loads(metadata["role_names"]) == list(ROLES)
    assert json.loads(metadata["layers"]) == list(range(LAYERS))
    assert json.loads(metadata["facts"]) == planted.reduction.facts
    assert "toward the Assistant" in metadata["signs"]


@pytest.mark.parametrize("form", ["assistant-axis", "safetensors", "gguf"])
def test_nothing_is_overwritten(run: Run, tmp_path: Path, form: ExportFormat):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        export_vectors(run, tmp_path / "out", form)
    assert caught.value.code == "not_empty"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    assert export_vectors(run, tmp_path / "out", form).num_bytes > 0, "an empty folder is filled"


def test_a_full_disk_leaves_no_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_bytes, written = Path.write_bytes, []

    def fail_at_the_fourth(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail_at_the_fourth)
    with pytest.raises(Exception, match="full"):
        export_vectors(run, tmp_path / "out", "assistant-axis")
    assert len(written) == 4
    assert list(tmp_path.iterdir()) == []


def test_some_layers_fit_in_safetensors_and_not_in_the_released_files(tmp_path: Path):
    run = planted_run(str(tmp_path / "run"), plant((1, 3)).reduction)
    with pytest.raises(InputError, match="layers 0, 2") as caught:
        export_vectors(run, tmp_path / "out", "assistant-axis")
    assert (caught.value.code, caught.value.exit_status) == ("missing_layers", 2)
    assert not (tmp_path / "out").exists()
    export_vectors(run, tmp_path / "out", "safetensors")
    with safe_open(tmp_path / "out" / "vectors.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["layers"]) == [1, 3]


def test_a_folder_inside_a_store_is_refused(refused: Refused, run: Run, tmp_path: Path):
    inner = Path(run.url) / "analysis"
    (tmp_path / "link").symlink_to(inner)
    for out in (Path(run.url) / "out", inner / "out", tmp_path / "link" / "out"):
        error = refused("export", run.url, out, "--format", "safetensors")
        assert error["code"] == "inside_a_store"
        assert run.url in error["error"]
        assert not out.exists()
    assert refused("export", run.url, run.url, "--format", "safetensors")["code"] == "not_empty"
    # A copy of a run that nobody has reduced has neither reductions nor drivers.
    (tmp_path / "copy").mkdir()
    shutil.copy(Path(run.url) / "run.json", tmp_path / "copy")
    assert refused("export", run.url, tmp_path / "copy" / "out", "--format", "safetensors")["code"] == "inside_a_store"


def test_a_folder_beside_a_file_that_has_the_name_of_a_stores_record_is_taken(run: Run, tmp_path: Path):
    (tmp_path / "run.json").write_text('{"my": "settings"}')
    (tmp_path / "analysis").mkdir()
    export_vectors(run, tmp_path / "out", "safetensors")
    assert (tmp_path / "out" / "vectors.safetensors").is_file()


def test_what_was_not_computed_is_refused_by_name(refused: Refused, tmp_path: Path, planted: Planted):
    small_run(str(tmp_path / "unreduced"))
    out = tmp_path / "out"
    assert refused("export", tmp_path / "unreduced", out, "--format", "safetensors")["code"] == "not_reduced"
    reduction = planted.reduction
    assert reduction.axis is not None
    undefined = reduction.axis.copy()
    undefined[2] = np.nan
    no_axis = replace(reduction, reduction_id="none", axis=None, cap_on_minus_axis=None, floor_on_axis=None)
    cases = [
        (no_axis, ("assistant-axis",), "there is no axis"),
        (no_axis, ("gguf",), "there is no axis"),
        (replace(reduction, reduction_id="nan", axis=undefined), ("assistant-axis",), "layer 2"),
        (
            replace(reduction, reduction_id="mid", facts=reduction.facts | {"hook_point": "resid_pre"}),
            ("gguf",),
            "resid_pre",
        ),
        (replace(reduction, reduction_id="all"), ("gguf", "--vector", "role:pirat"), "pirat"),
        (replace(reduction, reduction_id="all"), ("gguf", "--vector", "trait:pirate"), "pirate"),
        (replace(reduction, reduction_id="all"), ("gguf", "--vector", "default"), "mean activation"),
        (replace(reduction, reduction_id="all"), ("gguf", "--vector", "pirate"), "names no vector"),
        (replace(reduction, reduction_id="all"), ("safetensors", "--vector", "axis"), "holds all vectors"),
    ]
    location = small_run(str(tmp_path / "run")).location
    for reduced, form, words in cases:
        write_reduction(location, reduced)
        error = refused("export", tmp_path / "run", out, "--format", *form)
        assert words in error["error"], form
        assert not out.exists()


def test_the_command_lists_what_it_wrote(answered: Answered, run: Run, tmp_path: Path):
    found = answered("export", run.url, tmp_path / "out", "--format", "assistant-axis")
    assert len(found["files"]) == 3 + len(ROLES) + len(TRAITS)
    assert found["bytes"] == sum(Path(path).stat().st_size for path in found["files"])
    (note,) = found["notes"]
    assert "layers_3:4-p0.25 is the one to try first" in note
    assert "No evaluation of this model's replies has been run" in note
    assert run.reduction is not None
    assert found["trust"] == list(summarise(run, run.reduction).trust)


def test_a_run_without_thresholds_says_that_their_file_is_left_out(tmp_path: Path, planted: Planted):
    bare = replace(planted.reduction, threshold_labels=(), cap_on_minus_axis=None, floor_on_axis=None)
    run = planted_run(str(tmp_path / "run"), bare)
    found = export_vectors(run, tmp_path / "out", "assistant-axis")
    assert found.notes == ("There are no thresholds, so capping_config.pt was left out.",)
    assert not (tmp_path / "out" / "capping_config.pt").exists()
    assert open_run(run.url).reduction is not None


def test_a_format_that_does_not_exist_is_refused_before_anything_is_written(run: Run, tmp_path: Path):
    with pytest.raises(InputError, match="'pt' is not a format") as caught:
        export_vectors(run, tmp_path / "out", "pt")  # pyright: ignore[reportArgumentType]
    assert (caught.value.code, caught.value.field) == ("unknown_format", "format")
    assert caught.value.hint == "Give one of assistant-axis, safetensors, gguf."
    assert not (tmp_path / "out").exists()
