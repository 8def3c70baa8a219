"""``persona-atlas serve``: answer chats over HTTP as OpenAI's API does, capped or steered, with their projections."""

from __future__ import annotations

import os
from contextlib import closing

import click

from ....jobs.errors import InputError
from ....jobs.wording import extra_hint
from .. import output
from .axis_options import AxisOptions, axis_options


@click.command()
@axis_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for a free one.")
@click.option(
    "--api-key-env", default=None, metavar="VARIABLE", help="Environment variable with the key that clients must send."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Most tokens of a reply where a request does not say.",
)
def serve(asked: AxisOptions, host: str, port: int, api_key_env: str | None, max_tokens: int) -> None:
    """Answer chats over HTTP with the model of AXIS, until Ctrl-C.

    AXIS is a store with a reduction, imported vectors, or a directory of published vectors. Clients speak the OpenAI
    protocol. A request may have the fields cap, steer, ablate, layers and positions of its own; the options here hold
    where it has none. Every reply says where it lies on the axis.
    """
    try:
        from ...serving.app import ServerSettings
        from ...serving.run_server import listen_on, run_server
    except ModuleNotFoundError as error:
        raise InputError(
            f"the server needs {error.name}, which is not installed.",
            code="not_installed",
            hint=f"{extra_hint('serve')}.",
        ) from error
    settings = ServerSettings(_key_in(api_key_env), asked.edits, max_tokens)
    progress = output.progress()
    with listen_on(host, port) as listening, closing(asked.load(progress)) as model:
        run_server(model, settings, listening, progress.say)


def _key_in(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(
            f"the environment variable {variable} is not set, or empty.",
            code="no_key",
            field="--api-key-env",
            hint="Set it to the key that clients must send, or leave the option out.",
        )
    return key
