"""Load the model of an axis in this process, to answer people while they wait."""

from __future__ import annotations

from ...analysis.axis_source import AxisSource
from ...jobs.engines import Engine
from ...jobs.errors import InputError
from ...workers.chat.checks import require_closed_prompts, require_no_channel
from ...workers.chat.spans import load_renderer
from ..run.progress import Progress
from ..watching.axis_model import find_axis_model
from .live_model import LiveModel
from .placed_reply import Placing


def load_live_model(
    axis: AxisSource,
    model: str | None,
    layer: int | None,
    progress: Progress,
    *,
    chat_template: str | None = None,
    transfer: bool = False,
    engine: Engine = "builtin",
    tensor_parallel: int = 1,
) -> LiveModel:
    """Load the model of an axis in this process.

    Args:
        axis: The axis.
        model: A Hugging Face id, a local directory, or ``package://module/file.gguf``; None: the model that the axis
            names.
        layer: 0-based layer at which replies are placed on the axis; None: its middle layer.
        progress: Prints a line before something that takes long.
        chat_template: File with a chat template to use instead of the model's; None: that of the axis's run.
        transfer: Whether the model may be another one than the axis's, of the same shape.
        engine: The engine that runs it.
        tensor_parallel: Devices among which vLLM splits each decoder layer.

    Raises:
        InputError: See ``find_axis_model`` and ``AxisReader.load``; or its prompts leave a response inside of
            reasoning, or there is no axis at the layer.
    """
    if engine == "builtin" and tensor_parallel > 1:
        raise InputError(
            f"is {tensor_parallel}, but the built-in engine has one device.",
            code="one_device",
            field="--tensor-parallel",
            hint="Leave it out, or give --engine vllm.",
        )
    placing = Placing(axis, axis.middle if layer is None else layer)
    found = find_axis_model(axis, model, progress, chat_template=chat_template, transfer=transfer)
    renderer = load_renderer(found.directory, found.chat_template).renderer
    require_closed_prompts(renderer)
    require_no_channel(renderer)
    if engine == "vllm":
        vllm = found.load_vllm([placing.layer], progress, tensor_parallel=tensor_parallel)
        responder, decode, longest = vllm, vllm.model.decode, vllm.max_conversation
    else:
        responder = found.load([placing.layer], progress)
        decode, longest = responder.loaded.decode, responder.loaded.max_context
    sizes = (found.facts.n_layers, found.facts.d_model, longest)
    return LiveModel(found.model.display_name, responder, decode, renderer, sizes, axis, placing, found.transfer)
