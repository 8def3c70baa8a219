"""Which quantised checkpoints each engine runs. Pure: from what a checkpoint's configuration declares.

The built-in engine computes with plain weights, and restores those that it can. vLLM computes with the quantised ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..model_facts import ModelFacts

_SIXTEEN_BITS = ("bfloat16", "float16")
_BOTH = ("cpu", "cuda")

_DEVICES = {"cpu": "CPUs", "cuda": "GPUs"}

_ANOTHER = "Name the checkpoint before quantisation (its model card links it), in bfloat16 or float16."


@dataclass(frozen=True, slots=True)
class VllmQuantization:
    """A method of quantisation that vLLM reads.

    Attributes:
        devices: Devices for which vLLM has kernels: ``cpu``, ``cuda``.
        dtypes: Types of parameters (``model.dtype``) that its kernels compute with.
    """

    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[str, ...] = _SIXTEEN_BITS


VLLM_QUANTIZATIONS = {
    "awq": VllmQuantization(_BOTH),
    "gptq": VllmQuantization(_BOTH),
    "compressed-tensors": VllmQuantization(_BOTH),
    "fp8": VllmQuantization(),
    "mxfp4": VllmQuantization(dtypes=("bfloat16",)),
}
"""Methods that vLLM 0.32.0 reads, by ``quant_method`` of a checkpoint: of ``QUANTIZATION_METHODS`` and of
``get_supported_act_dtypes`` in its ``model_executor/layers/quantization`` those of published language models. It has no
bitsandbytes any more. CPUs are named where the tests run the method there."""

RESTORED_QUANTIZATIONS = frozenset({"fp8", "mxfp8", "mxfp4"})
"""Methods whose weights the built-in engine restores to plain ones when it loads them."""


def against_method(facts: ModelFacts) -> str | None:
    """Return why vLLM cannot read a model's weights on any device, as a predicate of vLLM; None if it can.

    Args:
        facts: The model.

    Example:
        >>> from persona_atlas import plan
        >>> against_method(plan("job.yaml").facts) is None
        True
    """
    if not facts.quantization or facts.quantization in VLLM_QUANTIZATIONS:
        return None
    return f"does not read weights that are quantised with {facts.quantization}"


def against_kernels(facts: ModelFacts, *, dtype: str, device: str) -> str | None:
    """Return why vLLM has no kernels for weights whose method it reads, as a predicate of vLLM; None if it has.

    Args:
        facts: The model.
        dtype: Type of parameters that is asked for; ``auto`` is the checkpoint's.
        device: ``cpu`` or ``cuda``.
    """
    entry = VLLM_QUANTIZATIONS.get(facts.quantization)
    if entry is None:
        return None
    if device not in entry.devices:
        return f"has no kernels on {_DEVICES[device]} for weights that are quantised with {facts.quantization}"
    if (facts.dtype if dtype == "auto" else dtype) not in entry.dtypes:
        return f"computes with weights that are quantised with {facts.quantization} in {' or '.join(entry.dtypes)} only"
    return None


def require_quantization(facts: ModelFacts, *, dtype: str, device: str) -> None:
    """Refuse quantised weights that vLLM cannot run.

    Args:
        facts: The model.
        dtype: Type of parameters that is asked for; ``auto`` is the checkpoint's.
        device: ``cpu`` or ``cuda``.

    Raises:
        InputError: vLLM does not read them, or has no kernels for them on this device or in this type.
    """
    reason = against_method(facts) or against_kernels(facts, dtype=dtype, device=device)
    if reason is None:
        return
    entry = VLLM_QUANTIZATIONS.get(facts.quantization)
    if entry is not None and device in entry.devices:
        raise InputError(
            f"is {facts.dtype if dtype == 'auto' else dtype}, but vLLM {reason}.",
            code="quantised_dtype",
            field="model.dtype",
            hint=f"Set it to {' or '.join(entry.dtypes)}.",
        )
    restored = facts.quantization in RESTORED_QUANTIZATIONS
    raise InputError(
        f"vLLM {reason}.",
        code="quantised",
        field="model.source",
        hint="Set placement.engine to builtin, which restores plain weights." if restored else _ANOTHER,
    )


def require_restorable(facts: ModelFacts, why: str) -> None:
    """Refuse quantised weights that the built-in engine would have to compute with.

    Args:
        facts: The model.
        why: Why the built-in engine is to run it, as a clause.

    Raises:
        InputError: The weights are quantised, and not in a way that is restored.
    """
    if facts.quantization and facts.quantization not in RESTORED_QUANTIZATIONS:
        raise InputError(
            f"the weights are quantised with {facts.quantization}, and the built-in engine computes with plain ones; "
            f"{why}.",
            code="quantised",
            field="model.source",
            hint=f"Let vLLM run the job (placement.engine=vllm), or choose another checkpoint. {_ANOTHER}",
        )
