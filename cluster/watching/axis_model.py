"""Find the model that an axis belongs to, or another that it is to be transferred to, and load it to read texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...analysis.axis_source import AxisSource
from ...jobs.engines import Engine
from ...jobs.errors import InputError
from ...jobs.model_facts import ModelFacts
from ...jobs.poolings import POOLINGS, TOKENS
from ...jobs.sizing.estimate import BYTES_PER_PARAMETER, HEADROOM, batch_tokens, resolved_dtype
from ...jobs.specs.spec_parts import CaptureSpec, ModelSpec, PlacementSpec, SamplingSpec
from ...workers.chat.template import read_chat_template
from ...workers.engine import EngineSettings, Responder
from ...workers.models.model_files import earlier_fingerprint, find_sources, read_facts
from ..pool.assemble import load_engine
from ..pool.placement import place
from ..pool.session import local_resources
from ..pool.worker_settings import WorkerSettings
from ..run.progress import Progress

if TYPE_CHECKING:
    from ...workers.builtin.builtin_engine import BuiltinEngine
    from ...workers.vllm.vllm_engine import VllmEngine

_USUAL_TOKENS = 512
"""Tokens of a reply, by which the size of vLLM's batch is chosen; a request may ask for more."""


@dataclass(frozen=True)
class AxisReader:
    """A model that was found and may be read on an axis; ``load`` loads its weights.

    Attributes:
        axis: The axis.
        model: The model.
        directory: Directory with its files.
        facts: Its sizes and identity.
        chat_template: Text of the chat template to use instead of the model's; None: the model's.
        transfer: A sentence where it is another model than the axis's; None where it is its own.
    """

    axis: AxisSource
    model: ModelSpec
    directory: Path
    facts: ModelFacts
    chat_template: str | None
    transfer: str | None

    def load(self, layers: Sequence[int], progress: Progress, *, tokens: bool = False) -> BuiltinEngine:
        """Load the model in this process, to be read at some layers as the axis was.

        Args:
            layers: 0-based layers.
            progress: Prints a line before the model is loaded.
            tokens: Whether every token is kept besides the pooled activations.

        Raises:
            InputError: It cannot be loaded or does not fit the memory.
        """
        from ...workers.builtin.builtin_engine import BuiltinEngine

        loaded = self._load(layers, progress, tokens=tokens)
        assert isinstance(loaded, BuiltinEngine)
        return loaded

    def load_vllm(self, layers: Sequence[int], progress: Progress, *, tensor_parallel: int = 1) -> VllmEngine:
        """Load the model into vLLM, to generate and to be read at some layers as the axis was.

        Args:
            layers: 0-based layers.
            progress: Prints a line before the model is loaded.
            tensor_parallel: Devices among which each decoder layer is split.

        Raises:
            InputError: vLLM is missing, or cannot load or capture it.
        """
        from ...workers.vllm.vllm_engine import VllmEngine

        loaded = self._load(layers, progress, engine="vllm", tensor_parallel=tensor_parallel)
        assert isinstance(loaded, VllmEngine)
        return loaded

    def _load(
        self,
        layers: Sequence[int],
        progress: Progress,
        *,
        tokens: bool = False,
        engine: Engine = "builtin",
        tensor_parallel: int = 1,
    ) -> Responder:
        dtype = resolved_dtype(self.model.dtype, self.facts.dtype)
        placement = place(PlacementSpec(replicas=1), local_resources())
        chosen = sorted(layers)
        poolings = [self.axis.pooling, *([TOKENS] if tokens else [])]
        capture = {"hook_points": [self.axis.hook_point], "poolings": poolings, "layers": chosen}
        engine_settings = EngineSettings(
            directory=self.directory,
            dtype=dtype,
            device=placement.device,
            threads=placement.threads,
            batch_tokens=batch_tokens(PlacementSpec(), engine, placement.device),
            layers=tuple(chosen),
            # Each request says how it is sampled. vLLM divides the tokens of its batch by the length of a response.
            sampling=SamplingSpec(temperature=0, top_p=1, max_new_tokens=_USUAL_TOKENS),
            capture=CaptureSpec.model_validate(capture | ({"token_layers": chosen} if tokens else {})),
            token_layers=tuple(chosen) if tokens else (),
            chat_template=self.chat_template,
            tensor_parallel=tensor_parallel,
        )
        needed_bytes = int(HEADROOM * self.facts.num_parameters * BYTES_PER_PARAMETER[dtype])
        progress.say(f"Loading {self.model.source} in this process: {placement.device}.")
        settings = WorkerSettings(
            engine_settings, needed_bytes, "", None, rows_per_block=1, mantissa_bits=10, engine_name=engine
        )
        return load_engine(settings, lambda _: None)


def find_axis_model(
    axis: AxisSource, model: str | None, progress: Progress, *, chat_template: str | None = None, transfer: bool = False
) -> AxisReader:
    """Find the model to read on an axis, and check that it is the axis's or meant to be another.

    Args:
        axis: The axis.
        model: A Hugging Face id, a local directory, or ``package://module/file.gguf``; None: as the axis names it.
        progress: Prints a line before something that takes long.
        chat_template: File with a chat template to use instead of the model's; None: that of the axis's run.
        transfer: Whether another model than the axis's is meant.

    Raises:
        InputError: No model is named, it cannot be found or run, it is another one, or the axis was not made of
            responses.
    """
    _require_of_responses(axis)
    spec = _spec_of(axis, model, chat_template, transfer=transfer)
    template = read_chat_template(spec) if chat_template is not None else axis.model.chat_template
    sources = find_sources(spec, progress.say)
    checkpoint = sources.check()
    sizes = checkpoint.config.get_text_config()
    # Before weights are fetched: another width is told by the configuration.
    n_layers, d_model = int(sizes.num_hidden_layers), int(sizes.hidden_size)
    axis.require_shape(n_layers=n_layers, d_model=d_model, source=spec.source)
    directory = sources.directory(checkpoint)
    facts = read_facts(directory)
    own = axis.model.fingerprint
    # Earlier versions counted weights that are not loaded.
    is_earlier = bool(own) and own != facts.fingerprint and earlier_fingerprint(directory) == own
    said = axis.require_model(
        n_layers=n_layers,
        d_model=d_model,
        source=spec.source,
        fingerprint=own if is_earlier else facts.fingerprint,
        transfer=transfer,
    )
    return AxisReader(axis, spec, directory, facts, template, said)


def _require_of_responses(axis: AxisSource) -> None:
    pooling = POOLINGS.get(axis.pooling)
    if pooling is None or pooling.span != "response" or pooling.keeps_tokens:
        raise InputError(
            f"the axis in {axis.name} is one of {axis.pooling}, and turns are projected by the tokens of what was "
            "said.",
            code="other_pooling",
            field="AXIS",
            hint="persona-atlas reduce --pooling response_mean makes one of responses, where they were captured.",
        )


def _spec_of(axis: AxisSource, model: str | None, chat_template: str | None, *, transfer: bool) -> ModelSpec:
    own = axis.model.spec
    if own is None and model is None and axis.model.source is None:
        raise InputError(
            f"the files of {axis.name} do not name the model that the axis belongs to.",
            code="no_model_name",
            field="--model",
            hint="Give its Hugging Face id or directory.",
        )
    if own is None or (model is not None and transfer):
        source = model or axis.model.source
        assert source is not None
        spec = ModelSpec(source=source, revision=None if model else axis.model.revision)
    else:
        # The same model may be elsewhere by now; its parameter type and adapter are those of the run.
        spec = own if model is None else own.model_copy(update={"source": model, "revision": None})
    if chat_template is not None:
        return spec.model_copy(update={"chat_template": chat_template})
    # The run has kept the text; the file that its spec names may be gone. Named, it says that none is looked for.
    kept = "of the axis's run" if axis.model.chat_template is not None else None
    return spec.model_copy(update={"chat_template": kept})
