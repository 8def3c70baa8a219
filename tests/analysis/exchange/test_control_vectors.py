"""GGUF control vectors: layer numbers as llama.cpp and repeng take them, directions, and files that are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from persona_atlas.analysis.exchange.control_vectors import direction_of
from persona_atlas.analysis.exchange.export import export_vectors
from persona_atlas.analysis.exchange.read_directory import read_vectors
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.query.run import Run

from planted_vectors import LAYERS, WIDTH, Planted, plant, planted_run


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, planted: Planted) -> Run:
    return planted_run(str(tmp_path_factory.mktemp("store") / "run"), planted.reduction)


def what_llama_cpp_adds(path: Path) -> dict[int, np.ndarray]:
    """Find what llama.cpp adds to the output of each decoder layer, 0-based.

    Its loader puts ``direction.N`` at place N - 1 of one buffer and refuses N = 0; its adapter adds place L - 1 of the
    buffer to the output of layer L, for every layer but 0.
    """
    reader = gguf.GGUFReader(path)
    numbered = {int(tensor.name.split(".")[1]): np.array(tensor.data) for tensor in reader.tensors}
    assert min(numbered) > 0
    buffer = np.zeros((max(numbered), WIDTH), np.float32)
    for number, values_D in numbered.items():
        buffer[number - 1] = values_D
    return {layer: buffer[layer - 1] for layer in range(1, LAYERS) if layer - 1 < len(buffer)}


def test_a_layer_gets_its_own_direction_and_no_neighbours(run: Run, planted: Planted, tmp_path: Path):
    found = export_vectors(run, tmp_path / "out", "gguf")
    assert found.notes == ("axis.gguf leaves out layer 0.",)
    added = what_llama_cpp_adds(tmp_path / "out" / "axis.gguf")
    axis = planted.reduction.axis
    assert axis is not None
    assert sorted(added) == [1, 2, 3]
    for layer, values_D in added.items():
        assert np.array_equal(values_D, axis[layer]), layer
        assert float(values_D @ planted.direction_LD[layer]) > 0, "toward the Assistant"


def test_the_file_has_the_fields_that_its_readers_need(run: Run, tmp_path: Path):
    export_vectors(run, tmp_path / "out", "gguf")
    reader = gguf.GGUFReader(tmp_path / "out" / "axis.gguf")
    fields = {name: reader.get_field(name) for name in ("general.architecture", "controlvector.model_hint")}
    # repeng takes the bytes of a field's last part.
    texts = {name: bytes(field.parts[-1]).decode() for name, field in fields.items() if field is not None}
    assert texts == {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}
    count = reader.get_field("controlvector.layer_count")
    assert count is not None
    assert count.contents() == LAYERS - 1
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}


def test_a_role_is_the_way_from_the_assistant_to_it(run: Run, planted: Planted, tmp_path: Path):
    export_vectors(run, tmp_path / "out", "gguf", wanted=["role:pirate", "trait:stoic"])
    reduction = planted.reduction
    assert reduction.role_vectors is not None
    assert reduction.default_vector is not None
    assert reduction.trait_vectors is not None
    role = what_llama_cpp_adds(tmp_path / "out" / "role-pirate.gguf")
    trait = what_llama_cpp_adds(tmp_path / "out" / "trait-stoic.gguf")
    for layer in role:
        assert np.array_equal(role[layer], reduction.role_vectors[0, layer] - reduction.default_vector[layer])
        assert float(role[layer] @ planted.direction_LD[layer]) < 0, "away from the Assistant"
        assert np.array_equal(trait[layer], reduction.trait_vectors[1, layer])


@pytest.mark.parametrize(
    ("held", "store", "hint"),
    [
        (2, "runs/demo", "2 traits have a vector."),
        (1, "runs/demo", "1 trait has a vector."),
        (
            0,
            "my runs/demo",
            "No trait has a vector. One needs rollouts of the trait and of its opposite, each with a response. Then "
            "persona-atlas reduce 'my runs/demo' makes it.",
        ),
        (0, "", "No trait has a vector in these files."),
    ],
)
def test_a_trait_that_is_not_there_is_refused_with_what_there_is(planted: Planted, held: int, store: str, hint: str):
    vectors_TLD = planted.reduction.trait_vectors
    assert vectors_TLD is not None
    names = planted.reduction.trait_names[:held]
    reduction = replace(planted.reduction, trait_names=names, trait_vectors=vectors_TLD[:held] if held else None)
    with pytest.raises(InputError) as caught:
        direction_of(reduction, "trait:zzz", store)
    assert caught.value.hint == hint


def test_control_vectors_are_read_back(run: Run, planted: Planted, tmp_path: Path):
    export_vectors(run, tmp_path / "out", "gguf", wanted=["axis", "role:pirate", "trait:stoic"])
    found = read_vectors(tmp_path / "out", print)
    reduction = found.reduction
    assert (found.model, found.n_layers, found.d_model) == (run.model_name, LAYERS, WIDTH)
    assert reduction.layers == (1, 2, 3)
    assert reduction.trait_names == ("pirate_minus_default", "stoic")
    assert reduction.axis is not None
    assert reduction.trait_vectors is not None
    assert planted.reduction.axis is not None
    assert planted.reduction.trait_vectors is not None
    assert np.array_equal(reduction.axis, planted.reduction.axis[1:])
    assert np.array_equal(reduction.trait_vectors[1], planted.reduction.trait_vectors[1, 1:])


def write(path: Path, tensors: dict[str, np.ndarray], architecture: str = "controlvector", hint: str = "qwen3") -> Path:
    """Write a file as repeng does, without this project's fields."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def directions(layers: range, width: int = 8) -> dict[str, np.ndarray]:
    return {f"direction.{layer}": np.full(width, layer, np.float32) for layer in layers}


def test_a_vector_of_repeng_becomes_a_trait_by_the_name_of_its_file(tmp_path: Path):
    # repeng lists the last layer first.
    backwards = dict(reversed(directions(range(1, 5)).items()))
    found = read_vectors(write(tmp_path / "happy.gguf", backwards), print)
    assert found.reduction.trait_names == ("happy",)
    assert found.reduction.layers == (1, 2, 3, 4)
    assert found.n_layers == 5
    assert found.reduction.trait_vectors is not None
    assert found.reduction.trait_vectors[0, :, 0].tolist() == [1, 2, 3, 4]
    assert found.reduction.facts["model_family"] == "qwen3"


def test_what_is_no_control_vector_is_refused(tmp_path: Path):
    good = directions(range(1, 4))
    cases = {
        "architecture": (write(tmp_path / "a.gguf", good, architecture="llama"), "unknown_format"),
        "layer 0": (write(tmp_path / "b.gguf", directions(range(3))), "bad_tensor"),
        "name": (write(tmp_path / "c.gguf", {**good, "other": good["direction.1"]}), "bad_tensor"),
        "type": (write(tmp_path / "d.gguf", {"direction.1": np.zeros(8, np.float16)}), "bad_tensor"),
        "nan": (write(tmp_path / "e.gguf", {"direction.1": np.full(8, np.nan, np.float32)}), "not_finite"),
        "widths": (write(tmp_path / "f.gguf", {**good, "direction.4": np.zeros(9, np.float32)}), "other_shape"),
    }
    (tmp_path / "g.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:40])
    cases["cut"] = (tmp_path / "g.gguf", "unreadable_file")
    for name, (path, code) in cases.items():
        with pytest.raises(InputError) as caught:
            read_vectors(path, print)
        assert (caught.value.code, caught.value.file) == (code, str(path)), name


def test_files_of_several_models_are_not_mixed(tmp_path: Path):
    write(tmp_path / "a.gguf", directions(range(1, 4)))
    write(tmp_path / "b.gguf", directions(range(1, 5)))
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path, print)
    assert (caught.value.code, caught.value.file) == ("other_shape", str(tmp_path / "b.gguf"))
    write(tmp_path / "b.gguf", directions(range(1, 4)), hint="llama")
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path, print)
    assert caught.value.code == "other_model"


def test_a_vector_that_is_there_twice_is_refused(run: Run, tmp_path: Path):
    export_vectors(run, tmp_path / "out", "gguf")
    (tmp_path / "out" / "copy.gguf").write_bytes((tmp_path / "out" / "axis.gguf").read_bytes())
    with pytest.raises(InputError) as caught:
        read_vectors(tmp_path / "out", print)
    assert caught.value.code == "same_vector"
