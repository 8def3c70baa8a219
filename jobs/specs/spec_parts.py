"""The sections of a job spec: model, personas, conversations, generation, sampling, capture, placement."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)

from ..catalog import BUILTIN
from ..files.yaml_file import NO_BOOLEAN
from ..poolings import DEFAULT_POOLING, POOLINGS, pooled_names, validate_pooling_name

HookPoint = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
PoolingName = Annotated[str, AfterValidator(validate_pooling_name)]
CaptureMode = Literal["during_generation", "prefill_pass"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
BuiltinTemplate = Literal["plain", "completion"]

PACKAGE_SCHEME = "package://"

BUILTIN_TEMPLATE_SCHEME = "builtin:"
"""Before the name of a chat template that comes with this project, where a file may be named."""

PLAIN_TEMPLATE = f"{BUILTIN_TEMPLATE_SCHEME}plain"
COMPLETION_TEMPLATE = f"{BUILTIN_TEMPLATE_SCHEME}completion"

MIN_TEMPERATURE = 1e-30
"""Lowest sampling temperature but 0: a logit of up to 10^8 divided by it is a float32, so probabilities are numbers."""

MAX_COUNT = 2**31 - 1
"""Largest number of anything that a spec can ask for, so that products of two of them are still numbers of 64 bits."""

_Count = Annotated[int, Field(ge=1, le=MAX_COUNT), NO_BOOLEAN]
_Layer = Annotated[int, Field(ge=0, le=MAX_COUNT), NO_BOOLEAN]


class SpecSection(BaseModel):
    """Base of all sections: unknown fields, infinities, half characters and later changes are refused."""

    # Pydantic's own message would repeat a value that was refused because it holds a password.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _whole_texts(cls, value: Any) -> Any:
        """Refuse half a character, which Python and JSON can hold but UTF-8, paths and tokenizers cannot."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
                raise ValueError("must be whole characters, without a lone surrogate")
        return value


class ModelSpec(SpecSection):
    """The model and the type of its parameters.

    Attributes:
        source: A Hugging Face id, a local directory, or ``package://<module>/<file>.gguf``; of a model, or of a LoRA
            adapter that names its model.
        revision: Branch, tag or commit of a Hugging Face id; None: the default branch.
        dtype: Type of the parameters; ``auto`` is that of the checkpoint.
        name: Replacement of ``{model_name}`` in prompts; None: the last part of ``source``.
        adapter: Directory or Hugging Face id of a LoRA adapter to merge into the model; None for none, or where
            ``source`` itself is an adapter, which names its model.
        chat_template: File with the chat template to use instead of the model's, or one of this project's:
            ``builtin:plain`` for a model without a template, ``builtin:completion`` for texts that are to be completed
            as they are. None: the model's.
    """

    source: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    dtype: Dtype = "auto"
    name: str | None = None
    adapter: Annotated[str, Field(min_length=1)] | None = None
    chat_template: Annotated[str, Field(min_length=1)] | None = None

    @property
    def display_name(self) -> str:
        """Replacement of ``{model_name}`` in prompts.

        Example:
            >>> ModelSpec(source="Qwen/Qwen3-0.6B").display_name
            'Qwen3-0.6B'
        """
        return self.name or self.source.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


class Selection(SpecSection):
    """Personas of one kind, and the number of rollouts of each.

    Attributes:
        names: Names or globs of personas in the catalog; an empty list selects none.
        prompts: Number of system prompts of each persona, from the first; None: all.
        questions: Number of questions, from the first; None: all.
        samples: Rollouts per prompt and question.
        questions_from: ``shared``: the catalog's extraction questions; ``own``: the persona's own questions.
    """

    names: list[str] = []
    prompts: _Count | None = None
    questions: _Count | None = None
    samples: _Count = 1
    questions_from: Literal["shared", "own"] = "shared"


class DefaultSelection(SpecSection):
    """The number of rollouts of the default Assistant.

    Attributes:
        prompts: Number of its system prompts, from the first; None: all; 0: no rollouts of the default Assistant.
        questions: Number of shared questions, from the first; None: all.
        samples: Rollouts per prompt and question.
    """

    prompts: Annotated[int, Field(ge=0, le=MAX_COUNT), NO_BOOLEAN] | None = None
    questions: _Count | None = None
    samples: _Count = 1


class PersonasSpec(SpecSection):
    """The personas that the model is prompted to adopt.

    Attributes:
        catalog: ``builtin``, or a directory in the native or the released layout.
        roles: Selection of roles.
        traits: Selection of traits, each in both polarities.
        default: Rollouts of the default Assistant.
    """

    catalog: str = BUILTIN
    roles: Selection = Selection()
    traits: Selection = Selection()
    default: DefaultSelection = DefaultSelection()


class PromptsSpec(SpecSection):
    """Prompts of a file that the model answers, each with one or several messages of the user.

    Attributes:
        source: A ``.jsonl`` or ``.json`` file.
    """

    source: Annotated[str, Field(min_length=1)]


class GenerationSpec(SpecSection):
    """A server with the OpenAI protocol (vLLM, SGLang and others) that generates; a worker's prefill pass captures.

    Attributes:
        endpoint: Base URL, such as ``http://host:8000/v1``.
        model: Name of the model on the server; None: ``model.source``.
        concurrency: Requests in flight of each replica.
        timeout_s: Timeout of one request in seconds.
        api_key_env: Name of the environment variable that holds the API key on the workers; the key is stored nowhere.
            None: requests are sent without a key. ``endpoint_keys`` has the names that are allowed.
    """

    endpoint: str
    model: str | None = None
    concurrency: Annotated[int, Field(ge=1, le=1024), NO_BOOLEAN] = 32
    timeout_s: Annotated[float, Field(gt=0), NO_BOOLEAN] = 600.0
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    _is_from_store: bool = PrivateAttr(default=False)

    @property
    def host(self) -> str:
        """Host and port of the endpoint, to which prompts and the key are sent."""
        return urlsplit(self.endpoint).netloc

    @property
    def is_from_store(self) -> bool:
        """Whether it was read from a store or a job, so that others than the user may have written it."""
        return self._is_from_store

    def marked(self, *, is_from_store: bool) -> GenerationSpec:
        """Copy it, and remember whether it was read from a store or a job; the mark is not stored itself."""
        copied = self.model_copy()
        copied._is_from_store = is_from_store
        return copied

    @field_validator("endpoint")
    @classmethod
    def _is_a_plain_url(cls, url: str) -> str:
        # A block of YAML ends with a line break.
        url = url.strip()
        if not url.startswith(("http://", "https://")):
            raise ValueError("an endpoint must be an http:// or https:// URL")
        try:
            has_host = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
        except ValueError:
            # Its message may repeat a password.
            raise ValueError("an endpoint must be a URL, as http://host:8000/v1") from None
        if not has_host:
            raise ValueError("an endpoint URL must have a host, as http://host:8000/v1")
        if "@" in url:
            raise ValueError("an endpoint URL must not hold credentials; name their variable in generation.api_key_env")
        if not url.isprintable() or " " in url:
            raise ValueError("an endpoint URL must not hold spaces or other invisible characters")
        if "?" in url or "#" in url:
            raise ValueError("an endpoint URL must end with its path: a key has its place in generation.api_key_env")
        return url.rstrip("/")


class SamplingSpec(SpecSection):
    """How responses are sampled.

    Attributes:
        temperature: Sampling temperature, 1e-30 to 10; 0 is greedy decoding.
        top_p: Nucleus sampling: the smallest set of tokens with at least this probability is sampled from.
        max_new_tokens: Most tokens of a response, the end-of-turn token included.
    """

    temperature: Annotated[float, Field(ge=0, le=10), NO_BOOLEAN] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN] = 0.9
    max_new_tokens: _Count = 512

    @field_validator("temperature")
    @classmethod
    def _can_divide(cls, temperature: float) -> float:
        if 0 < temperature < MIN_TEMPERATURE:
            raise ValueError(f"must be 0 (greedy decoding) or at least {MIN_TEMPERATURE:g}")
        return temperature


class CanarySpec(SpecSection):
    """Which rollouts are recomputed in a plain forward pass and compared, before their unit counts.

    The first unit of every worker is checked too, and every unit that has failed before, unless ``check`` is ``none``.

    Attributes:
        check: ``sample``: one rollout in ``one_in``, by the seed; ``every_unit``: these, and at least one of each unit;
            ``none``: no rollout, which every commit record then states.
        one_in: The share of all rollouts that is checked, as 1 in this number; 1 is every rollout. A check costs about
            as much as two or three short rollouts.
        tolerance: Largest relative error of a vector; None: 1e-3 in float32, 5e-2 in bfloat16 and float16.
        action: What an error above ``tolerance`` does: ``fail``: the unit fails; ``warn``: it is kept, recorded and
            warned of, unless no rounding explains the error, which fails it under both. None: ``fail`` in float32 and
            where ``tolerance`` is given, else ``warn``.
    """

    check: Literal["sample", "every_unit", "none"] = "sample"
    one_in: _Count = 256
    tolerance: Annotated[float, Field(gt=0, lt=1), NO_BOOLEAN] | None = None
    action: Literal["fail", "warn"] | None = None

    def resolved(self, dtype: str) -> CanarySpec:
        """Return the rule with the action that it has for a parameter type.

        Args:
            dtype: Type of the model's parameters, such as ``bfloat16``.

        Example:
            >>> CanarySpec().resolved("bfloat16").action, CanarySpec().resolved("float32").action
            ('warn', 'fail')
        """
        is_strict = dtype == "float32" or self.tolerance is not None
        return self.model_copy(update={"action": self.action or ("fail" if is_strict else "warn")})


class CaptureSpec(SpecSection):
    """Which activations are stored.

    Attributes:
        hook_points: Points in a decoder layer; ``resid_post`` is the residual stream after its MLP, before any final
            norm. A model whose layers lack one of them is refused.
        layers: 0-based layers, ``all``, or ``middle`` (layer n_layers // 2).
        poolings: How a rollout's tokens become one vector: names of ``jobs/poolings.py``. ``tokens`` keeps each content
            token of the response instead.
        token_layers: Those of ``layers`` at which every token is kept: 0-based layers, ``middle`` or ``all``. Required
            with the pooling ``tokens``, since it decides how large the store becomes; None without it.
        mode: ``during_generation``: captured while the model generates; ``prefill_pass``: captured in a forward pass
            over texts that are given or that a server generated. Derived from the rest of the spec.
        canary: Which rollouts are compared with a plain forward pass. Changes no value, so it may differ between two
            starts of one run; each commit record has the rule that its unit was made under.
        before_intervention: Whether the values at a layer are those before the edits of the same layer; by default
            those after them. Edits of the layers below count in both cases.
    """

    hook_points: Annotated[list[HookPoint], Field(min_length=1)] = ["resid_post"]
    layers: Literal["all", "middle"] | Annotated[list[_Layer], Field(min_length=1)] = "all"
    poolings: Annotated[list[PoolingName], Field(min_length=1)] = [DEFAULT_POOLING]
    token_layers: Annotated[
        Literal["all", "middle"] | Annotated[list[_Layer], Field(min_length=1)] | None, Field(validate_default=True)
    ] = None
    mode: CaptureMode = "during_generation"
    canary: CanarySpec = CanarySpec()
    before_intervention: bool = False

    @property
    def pooled(self) -> list[str]:
        """The poolings that give one vector per rollout: all but those that keep every token."""
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
    def _required_with_tokens_only(cls, layers: Any, info: ValidationInfo) -> Any:
        keeps_tokens = any(POOLINGS[name].keeps_tokens for name in info.data.get("poolings", ()))
        if "poolings" in info.data and keeps_tokens != (layers is not None):
            if layers is None:
                raise ValueError("poolings has tokens: name the layers, as [12] or middle (extract: --token-layers)")
            raise ValueError("has no effect unless poolings has tokens (extract: --pooling tokens)")
        return layers

    @field_validator("hook_points", "layers", "poolings", "token_layers")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if isinstance(value, list) and len(set(value)) != len(value):
            raise ValueError("an entry is listed twice")
        return value


class PlacementSpec(SpecSection):
    """How the work is distributed; may differ between two starts of one run.

    Attributes:
        replicas: Copies of the model, one Ray actor each; None: one per GPU, or one per node without GPUs, following
            the cluster as nodes join and leave.
        engine: Engine that generates and captures: ``builtin``, ``vllm``, or ``auto`` for vLLM where it is installed,
            there is a GPU, and it captures the model and the hook points.
        tensor_parallel: GPUs among which each decoder layer of a replica is split; more than 1 takes vLLM.
        pipeline_parallel: Stages of a replica, each with ``tensor_parallel`` GPUs and a part of the decoder layers;
            more than 1 takes vLLM.
        device: ``auto`` uses GPUs if the cluster has any; Apple's (MPS) are refused, and not taken by ``auto``.
        weights: Whether a replica holds the weights of all layers (``resident``), or loads them layer by layer while it
            reads texts (``streamed``); ``auto`` streams what does not fit a replica's memory and is only read.
        batch_tokens: Most tokens of one batch, prompts and responses together; None: 12288 on a CPU, and on a GPU what
            its memory has room for beside the model; vLLM's own there. Of streamed weights the tokens that are read
            each time the weights are; None: as many as are needed for loading to take no time of its own.
        threads: CPU threads of each replica; None: the machine's cores are divided among the replicas.
    """

    replicas: _Count | None = None
    engine: Literal["auto", "builtin", "vllm"] = "auto"
    tensor_parallel: _Count = 1
    pipeline_parallel: _Count = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    weights: Literal["auto", "resident", "streamed"] = "auto"
    batch_tokens: Annotated[int, Field(ge=64, le=MAX_COUNT), NO_BOOLEAN] | None = None
    threads: _Count | None = None

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of one replica, if it runs on GPUs: tensor parallel times pipeline parallel."""
        return self.tensor_parallel * self.pipeline_parallel

    @field_validator("device", mode="before")
    @classmethod
    def _runs_on_no_apple_gpu(cls, value: object) -> object:
        if value == "mps":
            raise ValueError("is mps, and no engine here was ever run on Apple's GPUs; use cpu, which auto takes there")
        return value
