"""The job spec: one YAML file that says what to run, validated before anything is spent.

Everything that decides the science (which rollouts, from which model, sampled and captured how) is the run's
*identity*; everything else (where it is kept, how it is spread over machines) may change between two starts of one
run. Knows nothing of models' insides: whether a layer exists is the plan's question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from .catalog import BUILTIN
from .poolings import DEFAULT_POOLING, POOLINGS, pooled_names, pooling_name
from .yaml_file import parse_yaml, read_text, set_by_path, validate

HookPoint = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
PoolingName = Annotated[str, AfterValidator(pooling_name)]
CaptureMode = Literal["during_generation", "prefill_pass"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

PACKAGE_SCHEME = "package://"

_Count = Annotated[int, Field(ge=1)]
_Layer = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False)


class ModelSpec(_Part):
    """Which model, and how it is held.

    Attributes:
        source: A Hugging Face id, a local directory, or ``package://<module>/<file>.gguf``.
        revision: Branch, tag or commit of a Hugging Face id.
        dtype: Parameters' type; ``auto`` is the checkpoint's own.
        name: What ``{model_name}`` in a prompt becomes; the last part of ``source`` when not given.
    """

    source: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    dtype: Dtype = "auto"
    name: str | None = None

    @property
    def display_name(self) -> str:
        """What ``{model_name}`` in a prompt becomes."""
        return self.name or self.source.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


class Selection(_Part):
    """Which personas of one kind, and how many rollouts of each.

    Attributes:
        names: Names or globs of the catalog; an empty list leaves the kind out.
        prompts: How many of each persona's system prompts, from the first; null means all.
        questions: How many questions, from the first; null means all.
        samples: Rollouts per prompt and question.
        questions_from: ``shared``: the catalog's extraction questions; ``own``: the persona's own.
    """

    names: list[str] = []
    prompts: _Count | None = None
    questions: _Count | None = None
    samples: _Count = 1
    questions_from: Literal["shared", "own"] = "shared"


class DefaultSelection(_Part):
    """How much of the default Assistant; ``prompts: 0`` leaves it out.

    Attributes:
        prompts: How many of its variants, from the first; null means all, 0 none.
        questions: How many of the shared questions, from the first; null means all.
        samples: Rollouts per prompt and question.
    """

    prompts: Annotated[int, Field(ge=0)] | None = None
    questions: _Count | None = None
    samples: _Count = 1


class PersonasSpec(_Part):
    """Who is played.

    Attributes:
        catalog: ``builtin`` or a directory (our layout or the released one).
        roles: The roles.
        traits: The traits, each with both polarities.
        default: The default Assistant.
    """

    catalog: str = BUILTIN
    roles: Selection = Selection()
    traits: Selection = Selection()
    default: DefaultSelection = DefaultSelection()


class ConversationsSpec(_Part):
    """Texts that exist already, read instead of personas being played.

    Attributes:
        source: A ``.jsonl`` or ``.json`` file, or a directory of such files.
    """

    source: Annotated[str, Field(min_length=1)]


class GenerationSpec(_Part):
    """A server that generates, by the OpenAI protocol of vLLM, SGLang and others; capture is a pass of our own.

    Attributes:
        endpoint: Its base URL, as ``http://host:8000/v1``.
        model: What the server calls the model; ``model.source`` when not given.
        concurrency: Requests in flight at a time, of each replica.
        timeout_s: Of one request.
        api_key_env: Name of the environment variable with the key, where a worker runs; the key itself is kept nowhere.
    """

    endpoint: str
    model: str | None = None
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None

    @field_validator("endpoint")
    @classmethod
    def _is_a_plain_url(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("an endpoint is an http:// or https:// URL")
        if "@" in url.split("://")[1].split("/")[0]:
            raise ValueError("an endpoint URL carries no credentials; name their variable in generation.api_key_env")
        return url.rstrip("/")


class SamplingSpec(_Part):
    """How responses are sampled.

    Attributes:
        temperature: 0 is greedy.
        top_p: Smallest set of tokens with at least this mass is sampled from.
        max_new_tokens: Longest response, the end-of-turn token included.
    """

    temperature: Annotated[float, Field(ge=0, le=10)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: _Count = 512


class CaptureSpec(_Part):
    """What of the model is kept.

    Attributes:
        hook_points: Places in a block; ``resid_post`` is the residual stream after its MLP, before any final norm. A
            model whose blocks have no such place is refused by name.
        layers: 0-based blocks, ``all``, or ``middle`` (block n_layers // 2).
        poolings: How a rollout's tokens become one vector: names of ``jobs/poolings.py``. ``tokens`` keeps each content
            token of the response instead.
        token_layers: Of which of ``layers`` every token is kept: blocks, ``middle`` or ``all``; said exactly when
            ``tokens`` is among the poolings, for it is what makes a store large.
        mode: ``during_generation``: no second pass; ``prefill_pass``: one over texts that are given or that a server
            generated. Follows from the rest of the spec.
    """

    hook_points: Annotated[list[HookPoint], Field(min_length=1)] = ["resid_post"]
    layers: Literal["all", "middle"] | Annotated[list[_Layer], Field(min_length=1)] = "all"
    poolings: Annotated[list[PoolingName], Field(min_length=1)] = [DEFAULT_POOLING]
    token_layers: Annotated[
        Literal["all", "middle"] | Annotated[list[_Layer], Field(min_length=1)] | None, Field(validate_default=True)
    ] = None
    mode: CaptureMode = "during_generation"

    @property
    def pooled(self) -> list[str]:
        """The poolings that give one vector a rollout: all but those that keep every token."""
        return pooled_names(self.poolings)

    @property
    def keeps_tokens(self) -> bool:
        """Whether every token of some layers is kept."""
        return any(POOLINGS[name].keeps_tokens for name in self.poolings)

    @property
    def needs_user_spans(self) -> bool:
        """Whether a pooling asks for the tokens of the user's message."""
        return any(POOLINGS[name].needs_user_span for name in self.poolings)

    @field_validator("token_layers")
    @classmethod
    def _said_with_tokens(cls, layers: Any, info: ValidationInfo) -> Any:
        keeps_tokens = any(POOLINGS[name].keeps_tokens for name in info.data.get("poolings", ()))
        if "poolings" in info.data and keeps_tokens != (layers is not None):
            if layers is None:
                raise ValueError("poolings has tokens: name the layers, as [12] or middle (extract: --token-layers)")
            raise ValueError("means nothing unless poolings has tokens (extract: --pooling tokens)")
        return layers

    @field_validator("hook_points", "layers", "poolings", "token_layers")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if isinstance(value, list) and len(set(value)) != len(value):
            raise ValueError("an entry is listed twice")
        return value


class PlacementSpec(_Part):
    """How the work is spread; may differ between two starts of one run.

    Attributes:
        replicas: Copies of the model, one Ray actor each; null means one per GPU, or one per node when there is none,
            as many as there are at any time.
        tensor_parallel: GPUs of one replica, each holding a slice of every matrix. Can be planned, priced and rendered;
            ``run`` and ``submit`` take 1 alone so far.
        device: ``auto`` takes GPUs when the cluster has them.
        batch_tokens: Tokens, prompts and responses together, that one batch may hold; null is 12288, a CPU's measure:
            raise it on a GPU.
        threads: CPU threads per replica; null divides the machine's cores among the replicas.
    """

    replicas: _Count | None = None
    tensor_parallel: _Count = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_tokens: Annotated[int, Field(ge=64)] | None = None
    threads: _Count | None = None


class StoreSpec(_Part):
    """Where the run is kept. Credentials never stand here: they come from the environment or the instance's role.

    Attributes:
        url: A directory or ``s3://bucket/prefix``.
        endpoint_url: Of an S3-compatible server that is not AWS; ``AWS_ENDPOINT_URL`` serves too.
        mantissa_bits: Bits kept of each float32's 23; 10 is float16's precision without its range.
    """

    url: Annotated[str, Field(min_length=1)]
    endpoint_url: str | None = None
    mantissa_bits: Annotated[int, Field(ge=1, le=23)] = 10

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if "://" in url and not url.startswith("s3://"):
            raise ValueError("a store is a directory or an s3:// URL")
        if "@" in url.removeprefix("s3://").split("/")[0]:
            raise ValueError("a store URL carries no credentials; set them in the environment")
        return url

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, url: str | None) -> str | None:
        if url is not None and "@" in url.split("://")[-1].split("/")[0]:
            raise ValueError("an endpoint URL carries no credentials; set them in the environment")
        return url


class JobSpec(_Part):
    """A whole job. See ``docs/spec.md`` for every field with its default.

    Attributes:
        model: Which model.
        personas: Who is played, how often.
        conversations: Texts to read instead; None plays the personas.
        generation: The server that generates; None generates here.
        sampling: How responses are sampled.
        capture: What is kept of the residual stream.
        placement: How it is spread over machines.
        store: Where it is kept.
        seed: Every rollout's own seed is derived from this and its address.
    """

    model: ModelSpec
    personas: PersonasSpec = PersonasSpec()
    conversations: ConversationsSpec | None = None
    generation: GenerationSpec | None = None
    sampling: SamplingSpec = SamplingSpec()
    capture: CaptureSpec = CaptureSpec()
    placement: PlacementSpec = PlacementSpec()
    store: StoreSpec
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _derive_mode(cls, data: Any) -> Any:
        """Texts that are not generated here are captured by a pass over them; nobody need say so."""
        if not isinstance(data, dict) or not (data.get("conversations") or data.get("generation")):
            return data
        capture = data.get("capture") or {}
        return data | {"capture": {"mode": "prefill_pass"} | capture} if isinstance(capture, dict) else data

    @model_validator(mode="after")
    def _asks_for_something(self) -> JobSpec:
        by_prefill = self.conversations is not None or self.generation is not None
        if by_prefill != (self.capture.mode == "prefill_pass"):
            asks = "texts from elsewhere need prefill_pass" if by_prefill else "nothing gives it texts"
            raise ValueError(f"capture.mode is {self.capture.mode}, but {asks}; leave it out, it follows from the rest")
        if self.conversations is not None:
            if self.personas != PersonasSpec():
                raise ValueError("a job either reads conversations or plays personas: leave one of the two out")
            if self.generation is not None:
                raise ValueError("conversations are read and not generated: leave generation out")
            return self
        if not self.personas.roles.names and not self.personas.traits.names and self.personas.default.prompts == 0:
            raise ValueError("personas selects nobody: name roles or traits, or give the default a prompt")
        return self

    def identity(self) -> dict[str, Any]:
        """Give the part of the spec that decides what the run's numbers mean."""
        whole = self.model_dump(mode="json")
        keep = {key: whole[key] for key in ("model", "capture")}
        keep["mantissa_bits"] = self.store.mantissa_bits
        if not self.capture.keeps_tokens:
            # A run that keeps none is what it was before there was such a choice.
            del keep["capture"]["token_layers"]
        # Where texts lie, or are generated, is no part of it: they are, and the plan's digest covers those.
        if self.conversations is not None:
            return keep | {"conversations": True}
        keep |= {key: whole[key] for key in ("personas", "sampling", "seed")}
        del keep["personas"]["catalog"]
        if self.generation is not None:
            keep["generation"] = {"model": self.served_model}
        return keep

    @property
    def served_model(self) -> str:
        """What a server is asked for."""
        return (self.generation and self.generation.model) or self.model.source

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return digest_of(self.identity())


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read and validate a spec file.

    Args:
        path: The YAML file.
        overrides: ``key.path=value`` assignments, applied in order before validation.

    Raises:
        InputError: The file or an override is wrong; names the file, line and field.

    Example:
        >>> load_spec("examples/demo.yaml", ["seed=7"]).seed  # doctest: +SKIP
        7
    """
    text = read_text(Path(path), "a job spec")
    return _validated(parse_yaml(text, str(path)), overrides, text, str(path))


def make_spec(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobSpec:
    """Validate a spec that was put together from a command's options.

    Raises:
        InputError: A field is wrong; names it.
    """
    return _validated(dict(data), overrides, "", "the command line")


def _validated(data: Any, overrides: Sequence[str], text: str, file: str) -> JobSpec:
    if isinstance(data, dict):
        for assignment in overrides:
            data = set_by_path(data, assignment)
    return validate(JobSpec, data, text=text, file=file)
