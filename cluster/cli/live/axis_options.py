"""Arguments and options of the commands that answer with a model beside its axis, and what they are read as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from ....analysis.axis_source import AxisSource, open_axis
from ....jobs.engines import Engine
from ....jobs.specs.interventions_spec import EditSetting
from ....jobs.specs.store_spec import S3Access
from ...run.progress import Progress
from ...serving.edit_options import EDIT_FIELDS, as_field, edit_settings
from ...serving.live_model import LiveModel
from ...serving.load import load_live_model
from ..options import Decorator, endpoint_option, reading_access_options, reduction_option, transfer_option


@dataclass(frozen=True)
class AxisOptions:
    """An axis, its model, and what is done along the axis.

    Attributes:
        axis: The axis, open.
        model: The model to load, as the user names it; None: the axis's own.
        layer: Layer at which replies are placed; None: the middle one.
        chat_template: File with a chat template to use instead of the model's; None: that of the axis's run.
        transfer: Whether the model may be another one than the axis's.
        edits: What is done along the axis.
        engine: The engine that runs the model.
        tensor_parallel: Devices among which vLLM splits each decoder layer.
    """

    axis: AxisSource
    model: str | None
    layer: int | None
    chat_template: str | None
    transfer: bool
    edits: tuple[EditSetting, ...]
    engine: Engine
    tensor_parallel: int

    def load(self, progress: Progress) -> LiveModel:
        """Load the model; what is done along the axis is checked with it.

        Args:
            progress: Prints a line before something that takes long.

        Raises:
            InputError: See ``load_live_model`` and ``LiveModel.intervention``.
        """
        live = load_live_model(
            self.axis,
            self.model,
            self.layer,
            progress,
            chat_template=self.chat_template,
            transfer=self.transfer,
            engine=self.engine,
            tensor_parallel=self.tensor_parallel,
        )
        if live.note:
            progress.say(live.note)
        live.intervention(self.edits)
        return live


_OPTIONS: list[Decorator] = [
    click.argument("axis", metavar="AXIS"),
    click.option(
        "--model",
        default=None,
        help="A Hugging Face id, a local directory, or package://module/file.gguf; by default the axis's own.",
    ),
    click.option(
        "--cap",
        default=None,
        metavar="LABEL|FLOOR",
        help="Hold the projection on the axis at or above a threshold such as p0.25, or a number in axis sign.",
    ),
    click.option(
        "--steer",
        default=None,
        metavar="FRACTION",
        help="Add this fraction of the layer's norm along the axis, below 0 away from the Assistant; or absolute:12.5.",
    ),
    click.option("--ablate", type=click.Choice(["axis"]), default=None, help="Remove the component along the axis."),
    click.option(
        "--layers",
        default=None,
        metavar="LAYERS",
        help="Layers that are edited: 46:54, a list such as 3,5, middle or all; as in a spec by default.",
    ),
    click.option(
        "--positions",
        type=click.Choice(["all", "response"]),
        default=None,
        help="Tokens that are edited; by default all.",
    ),
    click.option(
        "--layer",
        type=click.IntRange(min=0),
        default=None,
        help="Layer at which replies are projected on the axis; by default the middle one.",
    ),
    reduction_option,
    transfer_option,
    click.option(
        "--chat-template",
        default=None,
        type=click.Path(),
        help="File with a chat template to use instead of the model's, as for a base model.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["builtin", "vllm"]),
        default="builtin",
        show_default=True,
        help="The engine that runs the model.",
    ),
    click.option(
        "--tensor-parallel",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="GPUs among which vLLM splits each decoder layer.",
    ),
]


def axis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument AXIS and its options; the command gets them as ``asked``, an ``AxisOptions``."""

    @wraps(command)
    def with_axis(
        *arguments: Any,
        axis: str,
        model: str | None,
        reduction: str | None,
        transfer: bool,
        layer: int | None,
        chat_template: str | None,
        engine: Engine,
        tensor_parallel: int,
        endpoint_url: str | None,
        access: S3Access,
        **options: Any,
    ) -> Any:
        given = {name: as_field(name, options.pop(name)) for name in EDIT_FIELDS}
        # Before the axis is opened, which may be far away.
        edits = edit_settings(given, "--{}")
        opened = open_axis(axis, reduction=reduction, endpoint_url=endpoint_url, access=access)
        asked = AxisOptions(opened, model, layer, chat_template, transfer, edits, engine, tensor_parallel)
        return command(*arguments, asked=asked, **options)

    wrapped: Callable[..., Any] = with_axis
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return endpoint_option(reading_access_options(wrapped))
