"""``persona-atlas project``: where the turns of conversations lie on an axis, as a table, a picture, a page or JSON."""

from __future__ import annotations

import shutil
from typing import cast

import click

from ....analysis.axis_source import open_axis
from ....analysis.watching.lines import lines_of
from ....analysis.watching.page import render_page
from ....analysis.watching.picture import write_picture
from ....jobs.sources.reading.read_conversations import read_conversations
from ....jobs.specs.store_spec import S3Access
from ....workers.chat.turn_spans import TurnPart, TurnRole
from ...watching.watcher import Watcher, WatchSettings
from .. import output
from ..options import endpoint_option, json_option, reading_access_options, reduction_option, transfer_option
from ..result_files import file_to_write, picture_to_write, write_page


@click.command()
@click.argument("axis", metavar="AXIS")
@click.option(
    "--conversations",
    required=True,
    type=click.Path(),
    help="A file of JSON Lines or JSON, or a directory of such files, as extract reads them.",
)
@click.option(
    "--model",
    default=None,
    help="A Hugging Face id, a local directory, or package://module/file.gguf; by default the axis's own.",
)
@click.option(
    "--layer",
    "--layers",
    "layers",
    default="middle",
    show_default=True,
    help="'middle', 'all', a layer, a list such as 3,5 or a range such as 10:20.",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(["assistant", "user"]),
    help="Whose turns are projected, repeatable; by default the assistant's.",
)
@click.option(
    "--span",
    "part",
    default="content",
    show_default=True,
    type=click.Choice(["content", "reasoning", "all"]),
    help="What of the assistant's messages: what was said, what was reasoned, or both with calls of tools.",
)
@click.option("--tokens", is_flag=True, help="Project every token, too.")
@click.option(
    "--threshold",
    default=None,
    metavar="LABEL",
    help="Threshold to show: a percentile on minus the axis, by default p0.25 if the axis has it.",
)
@reduction_option
@transfer_option
@click.option(
    "--chat-template",
    default=None,
    type=click.Path(),
    help="File with a chat template to use instead of the model's, as for a base model.",
)
@click.option("--skip-invalid", is_flag=True, help="Leave out conversations that cannot be read.")
@click.option("--png", default=None, type=click.Path(dir_okay=False), help="File for the picture.")
@click.option(
    "--html", default=None, type=click.Path(dir_okay=False), help="File for a page that shows the texts of the turns."
)
@endpoint_option
@reading_access_options
@json_option
def project(
    axis: str,
    conversations: str,
    model: str | None,
    layers: str,
    roles: tuple[str, ...],
    part: str,
    tokens: bool,
    threshold: str | None,
    reduction: str | None,
    transfer: bool,
    chat_template: str | None,
    skip_invalid: bool,
    png: str | None,
    html: str | None,
    endpoint_url: str | None,
    access: S3Access,
    as_json: bool,
) -> None:
    """Project the turns of conversations on the axis AXIS, and compare them with the run behind it.

    AXIS is a run that was reduced, imported vectors, or a folder of published ones. Higher is nearer the Assistant.
    Each conversation is read in one pass of the model, in this process; each message of the assistant is a line.
    """
    picture, page = picture_to_write(png), file_to_write(html, "--html")
    given = read_conversations(conversations, skip_invalid=skip_invalid)
    settings = WatchSettings(
        model=model,
        layers=layers,
        part=cast("TurnPart", part),
        roles=cast("tuple[TurnRole, ...]", roles or ("assistant",)),
        threshold=threshold,
        tokens=tokens,
        chat_template=chat_template,
        transfer=transfer,
    )
    progress = output.progress()
    opened = open_axis(axis, reduction=reduction, endpoint_url=endpoint_url, access=access)
    watched = Watcher(opened, settings, progress).watch(given.conversations)
    for note in given.notes:
        progress.say(note)
    if picture is not None:
        write_picture(watched, picture)
    if page is not None:
        write_page(page, render_page(watched), "--html")
    if as_json:
        written = {name: str(path) for name, path in (("png", picture), ("html", page)) if path is not None}
        output.document(watched.as_dict() | {"skipped": len(given.skipped)} | written)
        return
    for line in watched.warnings:
        output.text(line)
    for line in lines_of(watched, shutil.get_terminal_size((100, 24)).columns):
        output.text(line)
    if given.skipped:
        output.text(f"Left out because they cannot be read: {len(given.skipped)}.")
    for name, path in (("Picture", picture), ("Page", page)):
        if path is not None:
            output.text(f"{name}: {path}")
