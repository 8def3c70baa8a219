"""``persona-atlas extract``: capture activations of existing conversations with a prefill pass."""

from __future__ import annotations

from typing import Any, get_args

import click

from ....jobs.poolings import DEFAULT_POOLING, DEFAULT_PROMPT_POOLING, POOLINGS
from ....jobs.specs.spec import make_spec
from ....jobs.specs.texts_spec import TextsRendering
from ..options import endpoint_option, grow_option, join_option, json_option, set_option
from ..work import work


@click.command()
@click.option("--model", required=True, help="A Hugging Face id, a local directory, or package://module/file.gguf.")
@click.option(
    "--conversations",
    default=None,
    type=click.Path(),
    help="A file of JSON Lines or JSON, or a directory of such files.",
)
@click.option(
    "--texts-of",
    default=None,
    metavar="STORE",
    help="Store of a run whose responses are read again, by a base model for instance: a directory, s3:// or hf://.",
)
@click.option(
    "--rendering",
    default=None,
    type=click.Choice(get_args(TextsRendering)),
    help="How the texts of --texts-of become tokens: the stored token ids (for a model with the same vocabulary), the "
    "chat template, or plain lines. By default template with --chat-template, else tokens.",
)
@click.option("--store", "store_url", required=True, help="A directory, or s3://bucket/prefix.")
@click.option("--layers", default="all", show_default=True, help="'all', 'middle', or a list such as 3,5.")
@click.option(
    "--pooling",
    "poolings",
    multiple=True,
    type=click.Choice(list(POOLINGS)),
    help=f"Pooling of each assistant turn, repeatable; by default {DEFAULT_POOLING}, of prompts "
    f"{DEFAULT_PROMPT_POOLING}. 'tokens' keeps every token.",
)
@click.option(
    "--token-layers", default=None, help="Layers at which --pooling tokens keeps every token, as for --layers."
)
@click.option(
    "--prompts-only",
    is_flag=True,
    help="Read prompts without an answer: each conversation ends with a message of the user and is one row.",
)
@click.option(
    "--skip-invalid",
    is_flag=True,
    help="Leave out conversations that cannot be read, and list them in the store, instead of refusing all.",
)
@click.option(
    "--chat-template",
    default=None,
    type=click.Path(),
    help="File with a chat template to use instead of the model's, as for a base model.",
)
@set_option
@grow_option
@join_option
@endpoint_option
@json_option
def extract(
    model: str,
    conversations: str | None,
    texts_of: str | None,
    rendering: str | None,
    store_url: str,
    layers: str,
    poolings: tuple[str, ...],
    token_layers: str | None,
    prompts_only: bool,
    skip_invalid: bool,
    chat_template: str | None,
    overrides: tuple[str, ...],
    grow: bool,
    address: str | None,
    endpoint_url: str | None,
    as_json: bool,
) -> int:
    """Run a model over existing conversations and store its activations, one row per assistant turn.

    A line of a .jsonl file is {"messages": [{"role": ..., "content": ...}, ...]}; other keys are copied into the store.
    With --prompts-only a line ends with the user's message, and is the row of its last token or another --pooling.
    A directory of the released pipeline, with one file per role, also gives role vectors and the axis.
    With --texts-of the responses are those of a stored run; rows keep the addresses and scores that they have there.
    A run that was stopped continues with the same command. --grow reads conversations that were appended since.
    """
    if (conversations is None) == (texts_of is None):
        raise click.UsageError("Name either --conversations or --texts-of.")
    data: dict[str, Any] = {
        "model": {"source": model, "chat_template": chat_template},
        "conversations": {
            "source": conversations,
            "skip_invalid": skip_invalid,
            "prompts_only": prompts_only,
            "texts_of": texts_of,
            "rendering": rendering,
        },
        "capture": {
            "layers": _layers(layers, "--layers"),
            "token_layers": _layers(token_layers, "--token-layers") if token_layers else None,
        }
        | ({"poolings": list(poolings)} if poolings else {}),
        "store": {"url": store_url, "endpoint_url": endpoint_url},
    }
    return work(make_spec(data, overrides), address, grow=grow, as_json=as_json)


def _layers(text: str, option: str) -> str | list[int]:
    if text in ("all", "middle"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"{text!r} is not 'all', 'middle' or a list such as 3,5."
        raise click.BadParameter(message, param_hint=option) from None
