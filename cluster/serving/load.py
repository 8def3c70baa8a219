"""Load the model of an axis in this process, to answer people while they wait."""

from __future__ import annotations

from ...analysis.axis_source import AxisSource
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
) -> LiveModel:
    """Load the model of an axis in this process, on the built-in engine.

    Args:
        axis: The axis.
        model: A Hugging Face id, a local directory, or ``package://module/file.gguf``; None: the model that the axis
            names.
        layer: 0-based layer at which replies are placed on the axis; None: its middle layer.
        progress: Prints a line before something that takes long.
        chat_template: File with a chat template to use instead of the model's; None: that of the axis's run.
        transfer: Whether the model may be another one than the axis's, of the same shape.

    Raises:
        InputError: See ``find_axis_model`` and ``AxisReader.load``; or its prompts leave a response inside of
            reasoning, or there is no axis at the layer.
    """
    placing = Placing(axis, axis.middle if layer is None else layer)
    found = find_axis_model(axis, model, progress, chat_template=chat_template, transfer=transfer)
    renderer = load_renderer(found.directory, found.chat_template).renderer
    require_closed_prompts(renderer)
    require_no_channel(renderer)
    engine = found.load([placing.layer], progress)
    loaded = engine.loaded
    sizes = (found.facts.n_layers, found.facts.d_model, loaded.max_context)
    return LiveModel(found.model.display_name, engine, loaded.decode, renderer, sizes, axis, placing, found.transfer)
