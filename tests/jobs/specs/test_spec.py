"""The job spec: what is refused and in which words, overrides, and what belongs to a run's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.poolings import POOLINGS
from persona_atlas.jobs.specs.spec import JobSpec, load_spec, make_spec

from fakes import small_spec

GOOD = """\
model:
  source: some/model
personas:
  roles:
    names: [pirate]
store:
  url: /tmp/somewhere
"""


def load(tmp_path: Path, text: str, *overrides: str) -> JobSpec:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_spec(path, overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, *overrides)
    return caught.value


def test_a_short_spec_is_filled_with_the_defaults(tmp_path: Path):
    spec = load(tmp_path, GOOD)
    assert spec.personas.roles.names == ["pirate"]
    assert (spec.sampling.temperature, spec.sampling.top_p, spec.sampling.max_new_tokens) == (0.7, 0.9, 512)
    assert spec.capture.layers == "all"
    assert spec.model.display_name == "model"


def test_an_unknown_key_is_refused_with_file_line_field_and_the_nearest_key(tmp_path: Path):
    error = refusal(tmp_path, GOOD + "sampling:\n  # how\n  temperatur: 1\n")
    assert (error.code, error.field, error.file) == ("unknown_key", "sampling.temperatur", str(tmp_path / "job.yaml"))
    assert f"{tmp_path / 'job.yaml'}, line 10" in str(error)
    assert "Did you mean 'temperature'?" in str(error)


def test_an_unknown_key_far_from_all_others_lists_those_that_are_known(tmp_path: Path):
    error = refusal(tmp_path, GOOD + "sampling: {zzz: 1}\n")
    assert "max_new_tokens, temperature, top_p" in str(error)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("sampling: {temperature: hot}", "sampling.temperature"),
        ("sampling: {temperature: -0.1}", "sampling.temperature"),
        ("sampling: {temperature: .nan}", "sampling.temperature"),
        ("sampling: {top_p: 0}", "sampling.top_p"),
        ("sampling: {max_new_tokens: 0}", "sampling.max_new_tokens"),
        ("capture: {layers: some}", "capture.layers"),
        ("capture: {layers: [0, 0]}", "capture.layers"),
        ("capture: {layers: []}", "capture.layers"),
        ("capture: {poolings: [sum]}", "capture.poolings.0"),
        ("capture: {poolings: [response_mean, tokens]}", "capture.token_layers"),
        ("capture: {poolings: [response_mean], token_layers: [1]}", "capture.token_layers"),
        ("capture: {token_layers: middle}", "capture.token_layers"),
        ("capture: {poolings: [tokens], token_layers: [1, 1]}", "capture.token_layers"),
        ("capture: {hook_points: []}", "capture.hook_points"),
        ("capture: {canary: {check: never}}", "capture.canary.check"),
        ("capture: {canary: {one_in: 0}}", "capture.canary.one_in"),
        ("capture: {canary: {one_in: true}}", "capture.canary.one_in"),
        ("capture: {canary: {tolerance: 0}}", "capture.canary.tolerance"),
        ("capture: {canary: {tolerance: 2}}", "capture.canary.tolerance"),
        ("capture: {canary: false}", "capture.canary"),
        ("placement: {replicas: 0}", "placement.replicas"),
        ("placement: {batch_tokens: 2147483648}", "placement.batch_tokens"),
        ("sampling: {max_new_tokens: 18446744073709551616}", "sampling.max_new_tokens"),
        ("generation: {endpoint: 'http://host/v 1'}", "generation.endpoint"),
        ("seed: -1", "seed"),
        ("seed: 9223372036854775808", "seed"),
    ],
)
def test_a_bad_value_names_its_field_and_line(tmp_path: Path, line: str, field: str):
    error = refusal(tmp_path, f"{GOOD}{line}\n")
    assert (error.code, error.field, error.exit_status) == ("bad_value", field, 2)
    assert "line 8)" in str(error)


@pytest.mark.parametrize(
    ("section", "values", "field"),
    [
        ("model", {"source": "some/model", "name": "a\ud800"}, "model.name"),
        ("model", {"source": "some/model", "revision": "\udcff"}, "model.revision"),
        ("personas", {"roles": {"names": ["pirate", "\ud800"]}}, "personas.roles.names"),
        ("personas", {"catalog": "\ud800"}, "personas.catalog"),
        ("personas", {"roles": {"names": ["pirate"], "samples": 10**400}}, "personas.roles.samples"),
    ],
)
def test_half_a_character_and_a_number_beyond_all_counts_are_refused(section: str, values: Any, field: str):
    data = {"model": {"source": "some/model"}, "personas": {"roles": {"names": ["pirate"]}}, "store": {"url": "x"}}
    with pytest.raises(InputError) as caught:
        make_spec(data | {section: values})
    assert (caught.value.code, caught.value.field) == ("bad_value", field)
    assert len(str(caught.value)) < 300


def test_an_endpoint_of_a_yaml_block_loses_its_line_break(tmp_path: Path):
    spec = load(tmp_path, GOOD + "generation:\n  endpoint: |\n    http://host:8000/v1\n")
    assert spec.generation is not None
    assert spec.generation.endpoint == "http://host:8000/v1"


def test_a_negative_layer_names_its_field(tmp_path: Path):
    error = refusal(tmp_path, GOOD + "capture: {layers: [0, -1]}\n")
    assert error.field is not None
    assert error.field.startswith("capture.layers")
    assert "literal" not in error.field


def test_a_pooling_that_is_none_is_refused_with_those_that_are(tmp_path: Path):
    error = refusal(tmp_path, GOOD + "capture: {poolings: [response_mean, prompt_man]}\n")
    assert (error.field, error.code) == ("capture.poolings.1", "bad_value")
    assert all(name in error.message for name in POOLINGS)
    assert "Did you mean 'prompt_mean'?" in error.message
    assert "'prompt_man'" in error.message


def test_a_missing_key_is_named(tmp_path: Path):
    error = refusal(tmp_path, "store: {url: x}\n")
    assert (error.code, error.field) == ("missing_key", "model")
    assert "job.yaml" in str(error)


def test_a_spec_that_selects_nobody_is_refused(tmp_path: Path):
    error = refusal(tmp_path, GOOD, "personas.roles.names=[]", "personas.default.prompts=0")
    assert "selects nobody" in str(error)


@pytest.mark.parametrize("text", ["", "- a list\n", "a text\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str):
    error = refusal(tmp_path, text)
    assert error.code == "not_a_mapping"
    assert error.file == str(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("bad", "line"),
    [("store: [\n", 9), ("a: b: c\n", 8), ("seed: *nobody\n", 8), ("seed: 1\nname: be\x07ll\n", 9), ("\tseed: 1\n", 8)],
    ids=["bracket", "colon", "alias", "control_character", "tab"],
)
def test_text_that_is_not_yaml_is_refused_with_its_line(tmp_path: Path, bad: str, line: int):
    error = refusal(tmp_path, GOOD + bad)
    assert (error.code, error.file) == ("not_yaml", str(tmp_path / "job.yaml"))
    assert f"line {line} " in str(error)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="No such file") as caught:
        load_spec(tmp_path / "nothing.yaml")
    assert caught.value.file == str(tmp_path / "nothing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9\n")
    with pytest.raises(InputError, match="line 1 is not UTF-8"):
        load_spec(tmp_path / "latin.yaml")


def test_overrides_change_fields_in_order_and_keep_the_rest(tmp_path: Path):
    spec = load(
        tmp_path,
        GOOD,
        "sampling.temperature=0",
        "personas.roles.names=[poet, 'a*']",
        "seed=1",
        "seed=2",
        "model.name=A = B",
    )
    assert spec.sampling.temperature == 0
    assert spec.personas.roles.names == ["poet", "a*"]
    assert spec.seed == 2
    assert (spec.model.source, spec.model.name) == ("some/model", "A = B")


def test_an_override_is_validated_as_the_file_is(tmp_path: Path):
    error = refusal(tmp_path, GOOD, "sampling.temperatur=1")
    assert (error.code, error.field) == ("unknown_key", "sampling.temperatur")


@pytest.mark.parametrize("override", ["seed", "=3", "seed.deep.er=1"])
def test_an_override_that_is_no_assignment_to_a_field_is_refused(tmp_path: Path, override: str):
    error = refusal(tmp_path, GOOD + "seed: 5\n", override)
    assert error.code == "bad_assignment"
    assert (error.field or "").startswith("--set")


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("store.url=s3://KEY:hunter2@bucket/x", "store.url"),
        ("store.url=https://KEY:hunter2@host/x", "store.url"),
        ("store.endpoint_url=http://KEY:hunter2@host:9000", "store.endpoint_url"),
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(tmp_path: Path, override: str, field: str):
    error = refusal(tmp_path, GOOD, override)
    assert error.field == field
    assert "hunter2" not in str(error) + str(error.as_dict())


def test_a_store_of_another_scheme_is_refused(tmp_path: Path):
    assert refusal(tmp_path, GOOD, "store.url=gs://bucket/x").field == "store.url"


@pytest.mark.parametrize(
    "changes",
    [
        {"store": {"url": "elsewhere", "endpoint_url": "http://host"}},
        {"placement": {"replicas": 7, "device": "cpu", "batch_tokens": 128, "threads": 3}},
    ],
    ids=["store", "placement"],
)
def test_where_a_run_is_kept_and_how_it_is_spread_do_not_change_what_it_is(changes: dict[str, Any]):
    assert small_spec(**changes).digest == small_spec().digest


def test_where_a_catalog_lies_does_not_change_what_a_run_is():
    personas = small_spec().personas.model_dump()
    assert small_spec(personas=personas | {"catalog": "elsewhere"}).digest == small_spec().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"source": "none", "name": "Somebody"}},
        {"model": {"source": "none", "name": "Nobody", "dtype": "bfloat16"}},
        {"personas": {"roles": {"names": ["pirate"]}}},
        {"sampling": {"temperature": 0.8}},
        {"sampling": {"max_new_tokens": 511}},
        {"capture": {"layers": "middle"}},
        {"capture": {"before_intervention": True}},
        {"seed": 1},
        {"store": {"url": "unused", "mantissa_bits": 7}},
    ],
    ids=[
        "model_name",
        "dtype",
        "personas",
        "temperature",
        "max_new_tokens",
        "layers",
        "before",
        "seed",
        "mantissa_bits",
    ],
)
def test_what_decides_the_numbers_changes_what_a_run_is(changes: dict[str, Any]):
    assert small_spec(**changes).digest != small_spec().digest


def test_a_run_without_interventions_keeps_its_digest():
    assert "before_intervention" not in small_spec().identity()["capture"]


def test_a_spec_written_out_and_read_again_is_the_same_job():
    spec = small_spec(capture={"layers": [1, 3]})
    again = JobSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.digest == spec.digest


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text("model: {source: a}\nstore:\n  url: x\nseed: 1\nstore: {url: y}\n")
    with pytest.raises(InputError) as refused:
        load_spec(path)
    assert refused.value.code == "repeated_key"
    assert refused.value.field == "store"
    assert "lines 2 and 5" in refused.value.message


def test_a_run_that_keeps_no_tokens_is_what_it_was_before_there_was_the_choice(tmp_path: Path):
    spec = load(tmp_path, GOOD)
    assert "token_layers" not in spec.identity()["capture"]
    keeping = load(tmp_path, GOOD + "capture: {poolings: [tokens], token_layers: [2]}\n")
    assert keeping.identity()["capture"]["token_layers"] == [2]
    assert (keeping.capture.pooled, keeping.capture.keeps_tokens) == ([], True)


def test_what_is_checked_is_no_part_of_a_runs_identity(tmp_path: Path):
    plain = load(tmp_path, GOOD)
    for canary in ("{check: none}", "{check: every_unit}", "{one_in: 1}", "{tolerance: 0.5}"):
        assert load(tmp_path, GOOD + f"capture: {{canary: {canary}}}\n").digest == plain.digest


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &a [*a]\n", 8),
        ("a: &a {b: {c: *a}}\n", 8),
        ("a: &a\n  <<: *a\n", 9),
        ("model2: " + "[" * 2000 + "]" * 2000 + "\n", 8),
        ("a: " + "{b: " * 65 + "1" + "}" * 65 + "\n", 8),
        ("a: " + "[" * 1_000_000, 8),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000)), 71),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 10}]\n" for n in range(1, 30)), 13),
    ],
    ids=["itself", "through_others", "merge", "lists", "mappings", "unclosed", "chain_of_aliases", "bomb"],
)
def test_yaml_that_nobody_can_read_to_its_end_is_refused_at_once(tmp_path: Path, text: str, line: int):
    error = refusal(tmp_path, GOOD + text)
    assert (error.code, error.file, error.exit_status) == ("unbounded_yaml", str(tmp_path / "job.yaml"), 2)
    assert f"line {line} " in str(error)
    assert "Write the values out" in str(error)
    with pytest.raises(InputError, match="--set seed"):
        load(tmp_path, GOOD, f"seed={'[' * 2000}")


def test_anchors_and_aliases_that_are_bounded_are_read(tmp_path: Path):
    text = GOOD.replace("names: [pirate]", "{names: &names [pirate, poet], prompts: 1}")
    spec = load(tmp_path, text + "capture: {layers: &n [1, 2], poolings: [tokens], token_layers: *n}\n")
    assert (spec.capture.layers, spec.capture.token_layers) == ([1, 2], [1, 2])


def test_a_value_that_looks_like_another_type_is_refused(tmp_path: Path):
    for value in ("2026-13-01", "!!int x", "!!bool x", "!!timestamp x", "!!int ''", "9" * 5000):
        error = refusal(tmp_path, f"{GOOD}seed: {value}\n")
        assert (error.code, error.file, error.exit_status) == ("not_yaml", str(tmp_path / "job.yaml"), 2)
    assert refusal(tmp_path, f"{GOOD}seed: 0x{'f' * 5000}\n").field == "seed"
    assert refusal(tmp_path, f"{GOOD}1: 2\n").exit_status == 2
    assert refusal(tmp_path, GOOD, ".".join(["a"] * 2000) + "=1").code == "bad_assignment"


NUMBERS = [
    "personas.roles.prompts",
    "personas.roles.questions",
    "personas.traits.samples",
    "personas.default.prompts",
    "generation.concurrency",
    "generation.timeout_s",
    "sampling.temperature",
    "sampling.top_p",
    "sampling.max_new_tokens",
    "placement.replicas",
    "placement.tensor_parallel",
    "placement.pipeline_parallel",
    "placement.batch_tokens",
    "placement.threads",
    "store.mantissa_bits",
    "seed",
]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "true", "false", "1.0e+999"])
def test_what_is_no_finite_number_is_refused_in_every_number(tmp_path: Path, field: str, value: str):
    error = refusal(tmp_path, GOOD, "generation.endpoint=http://host/v1", f"{field}={value}")
    assert (error.code, error.field, error.exit_status) == ("bad_value", field, 2)


def test_a_boolean_is_no_layer(tmp_path: Path):
    assert str(refusal(tmp_path, GOOD + "capture: {layers: [true]}\n").field).startswith("capture.layers")


@pytest.mark.parametrize("value", ["1.0e-38", "1.0e-300", "5.0e-324", "9.9e-31"])
def test_a_temperature_too_small_to_divide_by_is_refused(tmp_path: Path, value: str):
    error = refusal(tmp_path, GOOD, f"sampling.temperature={value}")
    assert error.field == "sampling.temperature"
    assert "must be 0 (greedy decoding) or at least 1e-30" in str(error)


@pytest.mark.parametrize("value", [0, 1e-30, 1e-6, 0.7, 10])
def test_every_temperature_that_can_divide_is_taken(value: float):
    spec = small_spec(sampling={"temperature": value})
    assert spec.sampling.temperature == value
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("text", "field", "kind", "fields"),
    [
        ("model: {source: m}\npersonas: {roles: [pirate]}\nstore: {url: x}", "personas.roles", "a list", "names"),
        ("model: SmolLM2\nstore: {url: x}", "model", "a text", "source"),
        ("model: {source: m}\nsampling: 3\nstore: {url: x}", "sampling", "a number", "temperature"),
        ("model: {source: m}\ncapture:\nstore: {url: x}", "capture", "empty", "layers"),
    ],
)
def test_a_section_that_is_no_mapping_is_told_its_fields(tmp_path: Path, text: str, field: str, kind: str, fields: str):
    with pytest.raises(InputError, match=f"must be a mapping of fields, but is {kind}") as caught:
        load(tmp_path, text)
    assert (caught.value.code, caught.value.field) == ("bad_value", field)
    assert fields in str(caught.value.hint)


def test_apple_s_gpus_are_refused_by_name_with_the_device_that_works():
    with pytest.raises(InputError, match=r"placement\.device: is mps, .* Apple's GPUs; use cpu") as caught:
        make_spec({"model": {"source": "m"}, "store": {"url": "runs/x"}, "placement": {"device": "mps"}})
    assert caught.value.field == "placement.device"


@pytest.mark.parametrize(
    ("canary", "dtype", "action"),
    [
        ("{}", "float32", "fail"),
        ("{}", "bfloat16", "warn"),
        ("{tolerance: 0.01}", "bfloat16", "fail"),
        ("{tolerance: 0.01, action: warn}", "float16", "warn"),
        ("{action: fail}", "bfloat16", "fail"),
    ],
)
def test_a_deviation_is_warned_of_in_16_bits_unless_the_job_says_what_is_allowed(
    tmp_path: Path, canary: str, dtype: str, action: str
):
    spec = load(tmp_path, GOOD + f"capture: {{canary: {canary}}}\n")
    assert spec.capture.canary.resolved(dtype).action == action


def test_a_spec_without_an_action_is_written_as_it_was_before_there_was_one(tmp_path: Path):
    assert "action" not in load(tmp_path, GOOD).model_dump()["capture"]["canary"]
    warning = load(tmp_path, GOOD + "capture: {canary: {action: warn}}\n")
    assert warning.model_dump()["capture"]["canary"]["action"] == "warn"
