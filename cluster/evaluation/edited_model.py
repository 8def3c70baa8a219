"""A model of transformers as lm-evaluation-harness takes it, and the edits along an axis under which it is evaluated.

Does not import lm_eval.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...analysis.axis_source import open_axis
from ...analysis.intervening.resolve import resolve
from ...jobs.errors import InputError
from ...jobs.interventions import Intervention
from ...jobs.model_facts import ModelFacts
from ...jobs.sizing.estimate import BYTES_PER_PARAMETER, HEADROOM, resolved_dtype
from ...jobs.specs.spec_parts import CaptureSpec, PlacementSpec, SamplingSpec
from ...jobs.wording import extra_hint
from ...workers.chat.template import TemplateSource
from ...workers.engine import EngineSettings
from ...workers.models.memory import require_memory
from ..pool.placement import place
from ..pool.session import local_resources
from ..run.progress import Progress
from ..serving.edit_options import EDIT_FIELDS, as_field, edit_settings
from ..watching.axis_model import find_axis_model


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A loaded model, as transformers has it.

    Attributes:
        model: The model, on its device.
        tokenizer: Its tokenizer, with the chat template that is used.
        source: As the user names it.
        facts: Its sizes and identity.
    """

    model: Any
    tokenizer: Any
    source: str
    facts: ModelFacts


def load_evaluated(
    source: str, directory: Path, facts: ModelFacts, dtype: str, device: str | None, chat_template: str | None
) -> EvaluatedModel:
    """Load a model as transformers runs it, without an engine.

    Args:
        source: As the user names it.
        directory: Directory with its files.
        facts: Its sizes and identity.
        dtype: Type of its parameters; ``auto``: that of the checkpoint.
        device: ``cpu``, ``cuda`` or ``cuda:1``; None: the first GPU. Without a GPU it is the CPU whatever is asked for,
            since the harness asks for ``cuda`` unless it is told otherwise.
        chat_template: Text of the chat template to use instead of the model's; None: the model's.

    Raises:
        InputError: It does not fit the memory, or cannot be loaded.
    """
    dtype = resolved_dtype(dtype, facts.dtype)
    found = place(PlacementSpec(replicas=1), local_resources()).device
    where = device if device and found == "cuda" else found
    require_memory(int(HEADROOM * facts.num_parameters * BYTES_PER_PARAMETER[dtype]), 1, where.partition(":")[0])
    from ...workers.builtin.loaded_model import load_model

    settings = EngineSettings(
        directory=directory,
        dtype=dtype,
        device=where,
        threads=1,
        batch_tokens=None,
        layers=(),
        sampling=SamplingSpec(),
        capture=CaptureSpec(),
    )
    model, tokenizer = load_model(settings)
    template = chat_template or tokenizer.chat_template
    if isinstance(template, str):
        # What an evaluation gives must not depend on the day.
        tokenizer.chat_template = TemplateSource(template).pinned
    return EvaluatedModel(model, tokenizer, source, facts)


def load_with_edits(
    store: str,
    progress: Progress,
    *,
    model: str | None = None,
    reduction: str | None = None,
    transfer: bool = False,
    chat_template: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    **edits: Any,
) -> tuple[EvaluatedModel, Intervention | None]:
    """Load the model of an axis, and resolve what is done along the axis; the edits are checked first.

    Args:
        store: The axis, as ``open_axis`` takes it.
        progress: Prints a line before something that takes long.
        model: The model; None: the axis's own.
        reduction: Id of a stored reduction; None: the current one.
        transfer: Whether the model may be another one than the axis's.
        chat_template: File with a chat template to use instead of the model's; None: that of the axis's run.
        dtype: Type of the parameters; ``auto``: that of the axis's run, or of the checkpoint.
        device: See ``load_evaluated``.
        edits: Those of ``EDIT_FIELDS`` that are given, as texts or values.

    Returns:
        The model and its edits; None for none.

    Raises:
        InputError: The axis, the model or an edit is wrong; names the argument.
    """
    if dtype not in ("auto", *BYTES_PER_PARAMETER):
        raise InputError(
            f"is one of auto, {', '.join(BYTES_PER_PARAMETER)}, and not {dtype}.", code="bad_value", field="dtype"
        )
    given = {name: _value(name, edits.get(name)) for name in EDIT_FIELDS}
    settings = edit_settings(given)
    axis = open_axis(store, reduction=reduction)
    found = find_axis_model(axis, model, progress, chat_template=chat_template, transfer=transfer)
    if found.transfer:
        progress.say(found.transfer)
    facts = found.facts
    resolved = [resolve(setting, axis, facts.n_layers, facts.d_model) for setting in settings]
    intervention = Intervention(tuple(edit for one in resolved for edit in one.edits)) if resolved else None
    asked = found.model.dtype if dtype == "auto" else dtype
    loaded = load_evaluated(found.model.source, found.directory, facts, asked, device, found.chat_template)
    return loaded, intervention


def _value(name: str, given: Any) -> Any:
    if name == "layers" and isinstance(given, int) and not isinstance(given, bool):
        # lm_eval reads layers=15 as a number.
        return [given]
    return as_field(name, given) if isinstance(given, str) else given


def refuse_missing_lm_eval(error: ModuleNotFoundError) -> InputError:
    """Say how to install lm-evaluation-harness.

    Args:
        error: What was raised when it was imported.
    """
    return InputError(
        f"capability is measured with lm-evaluation-harness, and {error.name} is not installed.",
        code="not_installed",
        hint=f"{extra_hint('eval')}.",
    )
