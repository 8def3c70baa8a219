"""Load the model of an axis in this process, to answer people while they wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...analysis.axis_source import AxisSource
from ...jobs.errors import InputError
from ...jobs.model_facts import ModelFacts
from ...jobs.sizing.estimate import BYTES_PER_PARAMETER, HEADROOM, batch_tokens, resolved_dtype
from ...jobs.specs.spec_parts import CaptureSpec, ModelSpec, PlacementSpec, SamplingSpec
from ...workers.chat.checks import require_closed_prompts, require_no_channel
from ...workers.chat.spans import load_renderer
from ...workers.chat.template import read_chat_template
from ...workers.engine import EngineSettings
from ...workers.models.memory import require_memory
from ...workers.models.model_files import find_model, read_facts
from ..pool.placement import place
from ..pool.session import local_resources
from ..run.progress import Progress
from .live_model import LiveModel
from .placed_reply import POOLING, Placing


def load_live_model(
    axis: AxisSource, model: str | None, layer: int | None, progress: Progress, *, transfer: bool = False
) -> LiveModel:
    """Load the model of an axis in this process, on the built-in engine.

    Args:
        axis: The axis.
        model: A Hugging Face id, a local directory, or ``package://module/file.gguf``; None: the model that the axis
            names.
        layer: 0-based layer at which replies are placed on the axis; None: its middle layer.
        progress: Prints a line before something that takes long.
        transfer: Whether the model may be another one than the axis's, of the same shape.

    Raises:
        InputError: There is no such model, it is not the axis's, it cannot be run or does not fit the memory, its
            prompts leave a response inside of reasoning, or there is no axis at the layer.
    """
    spec = _model_of(axis, model)
    placing = Placing(axis, axis.middle if layer is None else layer)
    directory = find_model(spec, progress.say)
    facts = read_facts(directory)
    note = axis.require_model(
        n_layers=facts.n_layers,
        d_model=facts.d_model,
        source=spec.source,
        fingerprint=facts.fingerprint,
        transfer=transfer,
    )
    template = read_chat_template(spec)
    renderer = load_renderer(directory, template).renderer
    require_closed_prompts(renderer)
    require_no_channel(renderer)
    settings = _settings(directory, spec, facts, template, axis.hook_point, placing.layer)
    progress.say(f"Loading {spec.source} in this process: {settings.device}, {settings.dtype}.")
    # Torch is imported only where a model is loaded.
    from ...workers.builtin.builtin_engine import BuiltinEngine

    engine = BuiltinEngine(settings)
    sizes = (facts.n_layers, facts.d_model, engine.loaded.max_context)
    return LiveModel(spec.display_name, engine, engine.loaded.decode, renderer, sizes, axis, placing, note)


def _model_of(axis: AxisSource, model: str | None) -> ModelSpec:
    """Return the model to load: with the run's own adapter, template and type where it is the run's model."""
    own = axis.model
    if model is None and own.source is None:
        raise InputError(
            f"the files of {axis.name} do not name their model.",
            code="no_model",
            field="--model",
            hint="Name it: a Hugging Face id, a directory, or package://module/file.gguf.",
        )
    if own.spec is not None and model in (None, own.spec.source):
        return own.spec
    revision = own.revision if model in (None, own.source) else None
    return ModelSpec(source=model or own.source or "", revision=revision)


def _settings(
    directory: Path, spec: ModelSpec, facts: ModelFacts, template: str | None, hook_point: Any, layer: int
) -> EngineSettings:
    dtype = resolved_dtype(spec.dtype, facts.dtype)
    placement = place(PlacementSpec(replicas=1), local_resources())
    budget = batch_tokens(PlacementSpec())
    values = HEADROOM * facts.num_parameters + budget * facts.kv_values_per_token
    require_memory(int(values * BYTES_PER_PARAMETER[dtype]), 1, placement.device)
    return EngineSettings(
        directory=directory,
        dtype=dtype,
        device=placement.device,
        threads=placement.threads,
        batch_tokens=budget,
        layers=(layer,),
        # Each request says how it is sampled.
        sampling=SamplingSpec(),
        capture=CaptureSpec(layers=[layer], hook_points=[hook_point], poolings=[POOLING]),
        chat_template=template,
    )
