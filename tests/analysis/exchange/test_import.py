"""Import: round trips of every format, checks of every file, and pickles that would run code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from persona_atlas.analysis.exchange.export import ExportFormat, export_vectors
from persona_atlas.analysis.exchange.read_directory import import_directory, read_vectors
from persona_atlas.analysis.exchange.tensors_file import SHAPES
from persona_atlas.jobs.errors import InputError, StoreError
from persona_atlas.storage.derived.reductions import Reduction
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import Run
from persona_atlas.storage.query.vectors import VectorSet, open_vectors

from command_line import Answered, Refused
from planted_vectors import LAYERS, ROLES, TRAITS, WIDTH, Planted


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    export_vectors(run, folder / "assistant-axis", "assistant-axis")
    export_vectors(run, folder / "safetensors", "safetensors")
    return folder


@pytest.fixture
def released(tmp_path: Path, exports: Path) -> Path:
    """A released directory that a test may change."""
    shutil.copytree(exports / "assistant-axis", tmp_path / "released")
    return tmp_path / "released"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def imported(folder: Path, url: str | Path) -> VectorSet:
    import_directory(folder, open_location(url), "some/model", print)
    found = open_vectors(url)
    assert isinstance(found, VectorSet)
    return found


def comes_back(exports: Path, form: ExportFormat, store_url: str, again: Path) -> None:
    # The model's name is part of the safetensors file, so it is taken from there.
    import_directory(exports / form, open_location(store_url), None if form == "safetensors" else "m", print)
    export_vectors(open_vectors(store_url), again, form)
    assert contents(again) == contents(exports / form)


def test_released_files_come_back_byte_by_byte(exports: Path, store_url: str, tmp_path: Path):
    comes_back(exports, "assistant-axis", store_url, tmp_path / "again")


def test_safetensors_come_back_byte_by_byte(exports: Path, tmp_path: Path):
    comes_back(exports, "safetensors", str(tmp_path / "set"), tmp_path / "again")


def test_the_store_has_the_vectors_with_their_signs(exports: Path, planted: Planted, tmp_path: Path):
    vectors = imported(exports / "assistant-axis", tmp_path / "set")
    assert (vectors.model_name, vectors.n_layers, vectors.d_model) == ("some/model", LAYERS, WIDTH)
    assert (vectors.layers, vectors.middle_layer) == ((0, 1, 2, 3), 2)
    found, made = vectors.reduction, planted.reduction
    assert (found.role_names, found.trait_names) == (ROLES, TRAITS)
    for name in ("axis", "default_vector", "role_vectors", "trait_vectors"):
        assert np.allclose(getattr(found, name), getattr(made, name), rtol=2**-8), name
    assert found.threshold_labels == made.threshold_labels
    assert found.cap_on_minus_axis is not None
    assert found.floor_on_axis is not None
    assert made.cap_on_minus_axis is not None
    # A window of the settings covers all four layers of this model.
    assert np.array_equal(found.cap_on_minus_axis, made.cap_on_minus_axis)
    assert np.array_equal(found.floor_on_axis, -found.cap_on_minus_axis)
    assert found.default_projection is not None
    assert found.role_projection is not None
    assert (found.role_projection < found.default_projection).all()
    assert found.pca_components is not None
    assert found.pc1_axis_cosine is not None
    # What roles share is removed; they differ along the planted direction.
    assert (found.pc1_axis_cosine > 0.9).all()


def test_show_says_what_it_is_and_other_commands_what_to_use(
    answered: Answered, refused: Refused, exports: Path, tmp_path: Path
):
    store = tmp_path / "set"
    said = answered("import", exports / "assistant-axis", store, "--model", "some/model")
    assert (said["files"], said["source"]) == (3 + len(ROLES) + len(TRAITS), "assistant-axis")
    shown = answered("show", store)
    assert (shown["imported"], shown["model"], shown["axis"]) == ("assistant-axis", "some/model", True)
    assert shown["personas"] == {"role": list(ROLES), "trait": list(TRAITS)}
    assert shown["thresholds"] == ["p0.01", "p0.25", "p0.5", "p0.75"]
    for command in ("query", "reduce", "verify", "gc"):
        error = refused(command, store)
        assert (error["code"], error["hint"]) == ("vectors_only", "show, report and export read it."), command
    before = contents(store)
    assert refused("import", exports / "safetensors", store)["code"] == "not_empty"
    assert contents(store) == before


def test_the_model_must_be_named_somewhere(refused: Refused, exports: Path, tmp_path: Path):
    error = refused("import", exports / "assistant-axis", tmp_path / "set")
    assert (error["code"], error["field"]) == ("no_model_name", "--model")
    assert not (tmp_path / "set").exists()


def test_another_model_than_the_files_name_is_refused_with_both(
    refused: Refused, run: Run, exports: Path, tmp_path: Path
):
    error = refused("import", exports / "safetensors", tmp_path / "set", "--model", "some/other")
    assert (error["code"], error["field"]) == ("other_model", "--model")
    assert "some/other" in error["error"]
    assert run.model_name in error["error"]
    assert not (tmp_path / "set").exists()


def test_a_copy_of_the_model_that_the_files_name_may_be_named_instead(run: Run, exports: Path, tmp_path: Path):
    copy = f"/models/{run.model_name.rpartition('/')[2]}"
    assert import_directory(exports / "safetensors", open_location(tmp_path / "set"), copy, print).model == copy


class Attack:
    """A pickle of it would run a command."""

    def __reduce__(self):
        return os.mkdir, (f"{os.environ['ATLAS_TEST_ATTACK']}",)


def break_files(folder: Path, kind: str) -> str:
    """Damage a released directory, and return the file that an error must name."""
    axis = torch.load(folder / "assistant_axis.pt", weights_only=True)
    pirate = folder / "role_vectors" / "pirate.pt"
    if kind == "no axis":
        (folder / "assistant_axis.pt").unlink()
        return "assistant_axis.pt"
    if kind == "no default":
        (folder / "default_vector.pt").unlink()
        return "default_vector.pt"
    if kind == "no roles":
        shutil.rmtree(folder / "role_vectors")
        return "role_vectors"
    if kind == "zero axis":
        axis[1] = 0
        torch.save(axis, folder / "assistant_axis.pt")
        return "assistant_axis.pt"
    if kind == "garbage":
        pirate.write_bytes(b"not a file of torch")
    elif kind == "cut":
        pirate.write_bytes(pirate.read_bytes()[:-200])
    elif kind == "empty":
        pirate.write_bytes(b"")
    elif kind == "pickle":
        torch.save(Attack(), pirate)
    else:
        nan = axis.clone()
        nan[2, 3] = torch.nan
        tensors = {
            "width": axis[:, :-1],
            "layers": axis[:-1],
            "integers": axis.int(),
            "one row": axis[0],
            "not a number": nan,
            "dictionary": {"pirate": axis},
        }
        torch.save(tensors[kind], pirate)
    return "role_vectors/pirate.pt"


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("no axis", "missing_file", "assistant_axis.pt"),
        ("no default", "missing_file", "default_vector.pt"),
        ("no roles", "missing_file", "role_vectors"),
        ("zero axis", "zero_axis", "layer 1"),
        ("garbage", "unreadable_file", "is not a file of torch.save"),
        ("cut", "unreadable_file", "or was cut short"),
        ("empty", "unreadable_file", "is not a file of torch.save"),
        ("pickle", "unsafe_pickle", "run any code"),
        ("width", "other_shape", f"{LAYERS} layers x {WIDTH - 1}"),
        ("layers", "other_shape", f"{LAYERS - 1} layers x {WIDTH}"),
        ("integers", "bad_tensor", "torch.int32"),
        ("one row", "bad_tensor", f"({WIDTH},)"),
        ("not a number", "not_finite", "layer 2"),
        ("dictionary", "bad_tensor", "dict"),
    ],
)
def test_a_wrong_file_is_named_and_nothing_is_written(
    refused: Refused, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: str, words: str
):
    monkeypatch.setenv("ATLAS_TEST_ATTACK", str(tmp_path / "attacked"))
    name = break_files(released, kind)
    error = refused("import", released, tmp_path / "set", "--model", "m")
    assert error["code"] == code, error
    assert error["file"] == str(released / name)
    assert words in error["error"]
    if code in ("unreadable_file", "unsafe_pickle"):
        assert "Expected is one tensor of floating-point numbers (n_layers, d_model)" in error["hint"]
    assert not (tmp_path / "set").exists()
    assert not (tmp_path / "attacked").exists()


def save_config(folder: Path, change: str) -> None:
    path = folder / "capping_config.pt"
    config = torch.load(path, weights_only=True)
    name = next(iter(config["vectors"]))
    if change == "wide":
        config["vectors"][name]["vector"] = torch.zeros(WIDTH + 1)
    elif change == "cap":
        config["experiments"][0]["interventions"][0]["cap"] = float("nan")
    elif change == "no id":
        del config["experiments"][0]["id"]
    elif change == "unknown":
        config["experiments"][0]["interventions"][0]["vector"] = "none"
    elif change == "list":
        config = [config]
    elif change == "direction":
        config["vectors"][name]["vector"] = -config["vectors"][name]["vector"]
    elif change == "several":
        config["experiments"].append(
            {"id": "layers_0:1-p0.25", "interventions": [{"vector": name, "cap": 99.0}]},
        )
    torch.save(config, path)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("wide", "other_shape"),
        ("cap", "not_finite"),
        ("no id", "bad_capping_config"),
        ("unknown", "bad_capping_config"),
        ("list", "bad_capping_config"),
    ],
)
def test_wrong_capping_settings_are_refused(released: Path, change: str, code: str):
    save_config(released, change)
    with pytest.raises(InputError) as caught:
        read_vectors(released, print)
    assert (caught.value.code, caught.value.file) == (code, str(released / "capping_config.pt"))


@pytest.mark.parametrize(("change", "words"), [("direction", "other directions"), ("several", "several caps")])
def test_capping_settings_that_are_no_thresholds_on_the_axis_are_kept_as_they_are(
    released: Path, tmp_path: Path, change: str, words: str
):
    save_config(released, change)
    vectors = imported(released, tmp_path / "set")
    assert words in vectors.record.notes[-1]
    assert vectors.reduction.floor_on_axis is None
    export_vectors(vectors, tmp_path / "again", "assistant-axis")
    assert contents(tmp_path / "again") == contents(released)


def test_an_axis_that_is_not_default_minus_roles_is_a_note(released: Path):
    assert read_vectors(released, print).notes == ()
    axis = torch.load(released / "assistant_axis.pt", weights_only=True)
    torch.save(-axis, released / "assistant_axis.pt")
    (released / "capping_config.pt").unlink()
    away, no_config = read_vectors(released, print).notes
    assert "points away from the Assistant" in away
    assert "no capping_config.pt" in no_config
    other = axis.clone()
    other[2] = axis[2].roll(1)
    torch.save(other, released / "assistant_axis.pt")
    apart, _ = read_vectors(released, print).notes
    assert "1 of 4 layers" in apart


def test_the_released_codes_own_axis_file_is_read(released: Path, planted: Planted):
    axis = torch.load(released / "assistant_axis.pt", weights_only=True)
    torch.save({"axis": axis, "metadata": {"model": "m"}}, released / "assistant_axis.pt")
    found = read_vectors(released, print).reduction.axis
    assert found is not None
    assert np.array_equal(found, axis.float().numpy())


def test_a_vector_that_was_saved_with_its_gradient_is_read(released: Path):
    axis = torch.load(released / "assistant_axis.pt", weights_only=True)
    torch.save(axis.requires_grad_(), released / "assistant_axis.pt")
    found = read_vectors(released, print).reduction.axis
    assert np.array_equal(found, axis.detach().float().numpy())  # pyright: ignore[reportArgumentType]


def test_a_safetensors_file_must_be_ours_and_of_one_model(exports: Path, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    original = exports / "safetensors" / "vectors.safetensors"
    arrays = load_file(original)
    save_file(arrays, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path / "foreign.safetensors", print)
    assert caught.value.code == "unknown_format"
    from safetensors import safe_open

    with safe_open(original, framework="numpy") as file:
        metadata = file.metadata()
    nan = arrays["axis"].copy()
    nan[1, 0] = np.nan
    cases = {
        "width": (arrays | {"axis": np.ascontiguousarray(arrays["axis"][:, :-1])}, metadata, "other_shape"),
        "type": (arrays | {"axis": arrays["axis"].astype(np.int64)}, metadata, "other_shape"),
        "nan": (arrays | {"axis": nan}, metadata, "not_finite"),
        "metadata": (arrays, {k: v for k, v in metadata.items() if k != "layers"}, "bad_metadata"),
        "another folder": (arrays, metadata | {"role_names": json.dumps(["../../evil", *ROLES[1:]])}, "bad_name"),
        "twice": (arrays, metadata | {"role_names": json.dumps([ROLES[1], *ROLES[1:]])}, "bad_metadata"),
    }
    for name, (changed, texts, code) in cases.items():
        save_file(changed, tmp_path / "x.safetensors", metadata=texts)
        with pytest.raises(InputError) as caught:
            read_vectors(tmp_path / "x.safetensors", print)
        assert caught.value.code == code, name
    (tmp_path / "x.safetensors").write_bytes(original.read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path / "x.safetensors", print)
    assert caught.value.code == "unreadable_file"


def test_every_array_of_a_reduction_has_a_place_in_the_file():
    texts = {"reduction_id", "layers", "role_names", "trait_names", "facts", "threshold_labels", "personas"}
    arrays = set(Reduction.__annotations__) - texts
    assert arrays - set(SHAPES) == {"projections", "projection_rows"}, "rows of a store"


def test_a_directory_of_something_else_is_refused(refused: Refused, tmp_path: Path):
    (tmp_path / "other").mkdir()
    assert refused("import", tmp_path / "other", tmp_path / "set")["code"] == "no_vectors"
    assert refused("import", tmp_path / "none", tmp_path / "set")["code"] == "no_vectors"


def test_a_damaged_store_of_vectors_says_so(exports: Path, tmp_path: Path):
    store = tmp_path / "set"
    imported(exports / "assistant-axis", store)
    record = (store / "vectors.json").read_text()
    (store / "vectors.json").write_text(record.replace("some/model", "an/other"))
    with pytest.raises(StoreError, match="seal"):
        open_vectors(store)
    (store / "vectors.json").write_text(record)
    shutil.rmtree(store / "analysis")
    with pytest.raises(StoreError) as caught:
        _ = open_vectors(store).reduction
    assert caught.value.code == "half_deleted"


def test_an_import_that_fails_midway_leaves_nothing(exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    location = open_location(tmp_path / "set")
    monkeypatch.setattr(type(location), "create", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        import_directory(exports / "assistant-axis", location, "m", print)
    assert not (tmp_path / "set").exists()
