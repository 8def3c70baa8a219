"""Which engine runs a job: the built-in one or vLLM. Pure: decided from the spec and the model's configuration alone.

The table of architectures is the one place that says what the vLLM engine captures. Knows neither engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import InputError
from .model_facts import ModelFacts
from .specs.spec import JobSpec
from .specs.spec_parts import CaptureSpec, PlacementSpec, SamplingSpec
from .vllm.parallelism import require_parallel
from .vllm.quantizations import against_kernels, against_method, require_quantization, require_restorable
from .wording import extra_hint

Engine = Literal["builtin", "vllm"]
"""An engine that generates and captures."""

VLLM_HOOK_POINT = "resid_post"
"""The only hook point that the vLLM engine captures."""

VLLM_MIN_TEMPERATURE = 0.01
"""Lowest temperature other than 0 that vLLM samples at; it raises a lower one to this."""

VLLM_MAX_NUM_SEQS = 256
"""Most rollouts that a replica of the vLLM engine runs at a time; vLLM's ``max_num_seqs`` is as many, and some more."""

VLLM_READING_SLOTS = 8
"""Slots of its sums beside those of rollouts: for what it reads meanwhile."""

VLLM_MAX_NUM_BATCHED_TOKENS = 2048
"""Tokens of one of its steps. Of each step the states of every captured layer are in memory: 2.7 GB at 80 x 8192."""

_BUILTIN_ASKED_FOR = "placement.engine is builtin"

VLLM_EXTRA = extra_hint("vllm")
"""How vLLM gets onto a machine."""


@dataclass(frozen=True, slots=True)
class VllmArchitecture:
    """An architecture that the vLLM engine captures.

    Attributes:
        family: ``model_type`` of its configurations.
        implementation: ``model_impl`` of vLLM: ``vllm`` for its own class, ``transformers`` where only the one of
            vLLM's transformers backend hands out the hidden states between decoder layers.
        shares_kv_heads: Whether several devices may hold the same key-value head, so that ``tensor_parallel`` may be
            more than there are of them.
        pipelines: Whether vLLM's class hands hidden states over the stages of a pipeline, so that ``pipeline_parallel``
            may be more than 1.
    """

    family: str
    implementation: Literal["vllm", "transformers"] = "vllm"
    shares_kv_heads: bool = True
    pipelines: bool = False


VLLM_ARCHITECTURES = {
    "LlamaForCausalLM": VllmArchitecture("llama", pipelines=True),
    "MistralForCausalLM": VllmArchitecture("mistral", pipelines=True),
    "Qwen2ForCausalLM": VllmArchitecture("qwen2", pipelines=True),
    "Qwen3ForCausalLM": VllmArchitecture("qwen3", pipelines=True),
    "Qwen3MoeForCausalLM": VllmArchitecture("qwen3_moe"),
    "Gemma2ForCausalLM": VllmArchitecture("gemma2", "transformers"),
    "Gemma3ForCausalLM": VllmArchitecture("gemma3_text", "transformers"),
    "GptOssForCausalLM": VllmArchitecture("gpt_oss", shares_kv_heads=False),
}
"""Architectures that the vLLM engine captures, by the name in ``architectures`` of a configuration."""


FAMILIES_RUN_ALONE = frozenset(
    {
        "bloom",
        "codegen",
        "doge",
        "falcon",
        "gpt_neo",
        "gptj",
        "jamba",
        "lfm2",
        "mamba",
        "mamba2",
        "mpt",
        "openai-gpt",
        "recurrent_gemma",
        "rwkv",
        "xglm",
        "xlstm",
    }
)
"""``model_type`` of families that are known to have a forward pass for every text in the built-in engine. It finds that
out by trial when it loads a model; plans know it for these, and for models whose configuration names layers other than
attention (``ModelFacts.other_layers``)."""


def vllm_architecture(facts: ModelFacts) -> VllmArchitecture | None:
    """Look up a model's architecture in the table; None if the vLLM engine does not capture it or its adapter.

    Args:
        facts: The model. Where its configuration names no architecture, the family decides.
    """
    if facts.has_adapter:
        return None
    if facts.architectures:
        return next((VLLM_ARCHITECTURES[name] for name in facts.architectures if name in VLLM_ARCHITECTURES), None)
    return next((entry for entry in VLLM_ARCHITECTURES.values() if entry.family == facts.family), None)


def require_vllm_model(facts: ModelFacts) -> VllmArchitecture:
    """Return the entry of a model's architecture in the table.

    Args:
        facts: The model.

    Raises:
        InputError: The model has an adapter, or the vLLM engine does not capture this architecture; names those that it
            captures.
    """
    found = vllm_architecture(facts)
    if found is not None:
        return found
    if facts.has_adapter:
        raise InputError(
            "the model has an adapter, which the vLLM engine does not apply.",
            code="no_adapter",
            field="model.adapter",
            hint="Merge it into the weights, or set placement.engine to builtin.",
        )
    raise InputError(
        f"the vLLM engine {against_model(facts)}.",
        code="no_vllm_model",
        field="placement.engine",
        hint=f"Set it to builtin, or choose a model among {', '.join(VLLM_ARCHITECTURES)}.",
    )


def against_model(facts: ModelFacts) -> str | None:
    """Return why the vLLM engine does not capture a model, as a predicate of the engine; None if it does.

    Args:
        facts: The model.
    """
    if facts.has_adapter:
        return "does not apply adapters"
    if vllm_architecture(facts) is None:
        return f"does not capture {facts.architectures[0] if facts.architectures else facts.family}"
    return against_method(facts)


def refuse_hook_points(capture: CaptureSpec) -> None:
    """Refuse hook points that the vLLM engine does not capture.

    Args:
        capture: What is to be captured.

    Raises:
        InputError: There is one.
    """
    others = _other_hook_points(capture)
    if others:
        raise InputError(
            f"asks for {', '.join(others)}, but the vLLM engine captures {VLLM_HOOK_POINT} only.",
            code="no_hook_point",
            field="capture.hook_points",
            hint=f"Capture {VLLM_HOOK_POINT}, or set placement.engine to builtin.",
        )


def refuse_temperature(sampling: SamplingSpec) -> None:
    """Refuse a temperature that vLLM would replace by a higher one.

    Args:
        sampling: How vLLM is to sample.

    Raises:
        InputError: It would.
    """
    if _is_raised(sampling):
        raise InputError(
            f"is {sampling.temperature}, but vLLM samples at {VLLM_MIN_TEMPERATURE} or more, or greedily.",
            code="low_temperature",
            field="sampling.temperature",
            hint=f"Set it to 0 or to at least {VLLM_MIN_TEMPERATURE}, or set placement.engine to builtin.",
        )


def refuse_before_intervention(capture: CaptureSpec) -> None:
    """Refuse values before the edits of the same layer: vLLM's models hand out what a layer returns, and it is edited.

    Args:
        capture: What is to be captured.

    Raises:
        InputError: They are asked for.
    """
    if capture.before_intervention:
        raise InputError(
            "is true, but the vLLM engine captures what an edited layer returns after its edits only.",
            code="no_before_intervention",
            field="capture.before_intervention",
            hint="Leave it out, or set placement.engine to builtin.",
        )


def choose_engine(spec: JobSpec, facts: ModelFacts, *, vllm_installed: bool, has_gpu: bool) -> Engine:
    """Choose the engine of a job's replicas.

    ``auto`` is vLLM where it is installed, there is a GPU, and it captures the model and every hook point that is asked
    for, reads the model's weights, and samples as the job says; else the built-in engine.

    Args:
        spec: The job.
        facts: Its model.
        vllm_installed: Whether vLLM is installed where the replicas run.
        has_gpu: Whether the replicas run on GPUs.

    Raises:
        InputError: The engine that is asked for, or the only one that is left, cannot run this job; names the field.

    Example:
        >>> from persona_atlas import load_spec, plan
        >>> planned = plan("job.yaml")
        >>> choose_engine(planned.spec, planned.facts, vllm_installed=True, has_gpu=False)
        'builtin'
    """
    placement = spec.placement
    if placement.engine == "vllm":
        _require_vllm(spec, facts, vllm_installed=vllm_installed, has_gpu=has_gpu)
        return "vllm"
    reason = _against_vllm(spec, facts, vllm_installed=vllm_installed, has_gpu=has_gpu)
    if placement.engine == "auto" and reason is None:
        _require_split(placement, facts)
        return "vllm"
    why = f"vLLM is not used, because {reason}" if placement.engine == "auto" else _BUILTIN_ASKED_FOR
    _require_one_device(placement, why)
    require_restorable(facts, why)
    return "builtin"


def refuse_parallel_builtin(placement: PlacementSpec) -> None:
    """Refuse several devices a replica where the built-in engine is asked for; known before the model is there.

    Args:
        placement: The job's placement.

    Raises:
        InputError: Names the field.
    """
    if placement.engine == "builtin":
        _require_one_device(placement, _BUILTIN_ASKED_FOR)


def possible_engines(spec: JobSpec, facts: ModelFacts) -> list[Engine]:
    """Return the engines that a run of a job may use, depending on what its machines have; the built-in one first.

    Args:
        spec: The job.
        facts: Its model.

    Raises:
        InputError: None can run this job, whatever the machines have; names the field.

    Example:
        >>> from persona_atlas import plan
        >>> planned = plan("job.yaml")
        >>> possible_engines(planned.spec, planned.facts)
        ['builtin', 'vllm']
    """
    may_have_gpu = spec.placement.device != "cpu"
    best = choose_engine(spec, facts, vllm_installed=True, has_gpu=may_have_gpu)
    try:
        other = choose_engine(spec, facts, vllm_installed=False, has_gpu=may_have_gpu)
    except InputError:
        # Without vLLM there is no other engine for this job.
        return [best]
    return [other] if other == best else [other, best]


def _require_vllm(spec: JobSpec, facts: ModelFacts, *, vllm_installed: bool, has_gpu: bool) -> None:
    """Refuse a job that asks for vLLM and that vLLM cannot run."""
    refuse_hook_points(spec.capture)
    refuse_before_intervention(spec.capture)
    if _generates(spec):
        refuse_temperature(spec.sampling)
    _require_split(spec.placement, facts)
    require_quantization(facts, dtype=spec.model.dtype, device=_device(has_gpu=has_gpu))
    if not vllm_installed:
        raise InputError(
            "is vllm, but vLLM is not installed where the replicas run.",
            code="no_vllm",
            field="placement.engine",
            hint=f"Install it there ({VLLM_EXTRA}), or set the engine to auto or builtin.",
        )


def _require_split(placement: PlacementSpec, facts: ModelFacts) -> None:
    """Refuse a split over several devices that vLLM cannot make of a model, or in which it cannot be captured."""
    architecture = require_vllm_model(facts)
    if placement.pipeline_parallel > 1 and not architecture.pipelines:
        able = ", ".join(name for name, entry in VLLM_ARCHITECTURES.items() if entry.pipelines)
        raise InputError(
            f"is {placement.pipeline_parallel}, but vLLM's class for {architecture.family} models does not hand hidden "
            f"states over the stages of a pipeline; it does so for {able}.",
            code="no_pipeline",
            field="placement.pipeline_parallel",
            hint="Set it to 1, and divide the model with placement.tensor_parallel.",
        )
    require_parallel(placement, facts, shares_kv_heads=architecture.shares_kv_heads)


def _against_vllm(spec: JobSpec, facts: ModelFacts, *, vllm_installed: bool, has_gpu: bool) -> str | None:
    """Say why ``auto`` does not choose vLLM; None if it does."""
    if spec.placement.weights == "streamed":
        return "it holds its weights, and placement.weights is streamed"
    if _other_hook_points(spec.capture):
        return f"it captures {VLLM_HOOK_POINT} only"
    if spec.capture.before_intervention:
        return "it captures what an edited layer returns after its edits only"
    if spec.drift is not None and spec.drift.user.endpoint is None:
        return "the built-in engine runs the model of the simulated user"
    if _generates(spec) and _is_raised(spec.sampling):
        return f"it samples at temperature {VLLM_MIN_TEMPERATURE} or more, or greedily"
    reason = against_model(facts)
    if reason is not None:
        return f"it {reason}"
    if not has_gpu:
        return "there is no GPU"
    reason = against_kernels(facts, dtype=spec.model.dtype, device=_device(has_gpu=has_gpu))
    if reason is not None:
        return f"it {reason}"
    return None if vllm_installed else f"it is not installed where the replicas run ({VLLM_EXTRA})"


def _require_one_device(placement: PlacementSpec, why: str) -> None:
    for name in ("tensor_parallel", "pipeline_parallel"):
        size = getattr(placement, name)
        if size > 1:
            raise InputError(
                f"is {size}, but the built-in engine has one device a replica, and {why}.",
                code="one_device",
                field=f"placement.{name}",
                hint="Set it to 1, or let vLLM run the job: placement.engine=vllm.",
            )


def _device(*, has_gpu: bool) -> str:
    return "cuda" if has_gpu else "cpu"


def _generates(spec: JobSpec) -> bool:
    """Whether the job's replicas generate, and not a server or nobody."""
    return spec.conversations is None and spec.generation is None


def _is_raised(sampling: SamplingSpec) -> bool:
    return 0 < sampling.temperature < VLLM_MIN_TEMPERATURE


def _other_hook_points(capture: CaptureSpec) -> list[str]:
    return [name for name in capture.hook_points if name != VLLM_HOOK_POINT]
