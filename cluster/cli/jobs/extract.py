"""``persona-atlas extract``: the prefill pass over conversations that exist already."""

from __future__ import annotations

from typing import Any

import click

from ....jobs.poolings import DEFAULT_POOLING, POOLINGS
from ....jobs.spec import make_spec
from ..options import endpoint_option, join_option, json_option, set_option
from ..work import work


@click.command()
@click.option("--model", required=True, help="A Hugging Face id, a local directory, or package://module/file.gguf.")
@click.option(
    "--conversations", required=True, type=click.Path(), help="A .jsonl or .json file, or a directory of such files."
)
@click.option("--store", "store_url", required=True, help="A directory, or s3://bucket/prefix.")
@click.option("--layers", default="all", show_default=True, help="'all', 'middle', or a list such as 3,5.")
@click.option(
    "--pooling",
    "poolings",
    multiple=True,
    type=click.Choice(list(POOLINGS)),
    help=f"What is kept of a turn; may be repeated. Without it, {DEFAULT_POOLING}. 'tokens' is every token, no vector.",
)
@click.option("--token-layers", default=None, help="Of which layers --pooling tokens keeps them: as --layers.")
@set_option
@join_option
@endpoint_option
@json_option
def extract(
    model: str,
    conversations: str,
    store_url: str,
    layers: str,
    poolings: tuple[str, ...],
    token_layers: str | None,
    overrides: tuple[str, ...],
    address: str | None,
    endpoint_url: str | None,
    as_json: bool,
) -> int:
    """Run a model over conversations you have and keep what it shows: a row for every turn of the assistant.

    A line of a .jsonl file is {"messages": [{"role": ..., "content": ...}, ...]}; its other keys are carried along.
    The released pipeline's directory of one file a role is read as such, and reduced when the default is there.
    The same command goes on with what is missing.
    """
    data: dict[str, Any] = {
        "model": {"source": model},
        "conversations": {"source": conversations},
        "capture": {
            "layers": _layers(layers, "--layers"),
            "poolings": list(poolings) or [DEFAULT_POOLING],
            "token_layers": _layers(token_layers, "--token-layers") if token_layers else None,
        },
        "store": {"url": store_url, "endpoint_url": endpoint_url},
    }
    return work(make_spec(data, overrides), address, as_json=as_json)


def _layers(text: str, option: str) -> str | list[int]:
    if text in ("all", "middle"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"{text!r} is not 'all', 'middle' or a list such as 3,5."
        raise click.BadParameter(message, param_hint=option) from None
