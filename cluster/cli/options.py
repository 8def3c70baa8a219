"""Arguments and options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

spec_argument: Decorator = click.argument("spec_file", metavar="SPEC", type=click.Path())
store_argument: Decorator = click.argument("store_url", metavar="STORE")
set_option: Decorator = click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override a field of the spec; may be repeated."
)
json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
endpoint_option: Decorator = click.option(
    "--endpoint-url", default=None, help="S3-compatible server of the store (or set AWS_ENDPOINT_URL)."
)
address_option: Decorator = click.option(
    "--address",
    default=None,
    metavar="URL",
    help="The cluster's dashboard, as http://head:8265 (or set RAY_API_SERVER_ADDRESS).",
)
join_option: Decorator = click.option(
    "--address", default=None, metavar="HOST:PORT", help="Join this Ray cluster; without it, start one here."
)

_CODE_OPTIONS: list[Decorator] = [
    click.option(
        "--code",
        type=click.Choice(["ship", "installed"]),
        default="ship",
        show_default=True,
        help="Send this package along, or use the one that the cluster has.",
    ),
    click.option("--image", default=None, help="Container image for the job's processes, which has this package."),
    click.option(
        "--driver-resource", default="", metavar="NAME", help="Keep the driver on nodes with this Ray resource."
    ),
    click.option(
        "--scale-up",
        "may_scale_up",
        is_flag=True,
        help="GPUs that are not there yet will be: an autoscaler brings them.",
    ),
]


def code_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how a job finds its code and its driver's place."""
    for option in reversed(_CODE_OPTIONS):
        command = option(command)
    return command


def is_store(target: str) -> bool:
    """Whether an argument that may be a job's id or a store names a store."""
    return "/" in target or "\\" in target or target in (".", "..") or Path(target).is_dir()


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose devices from the table."""
    command = click.option("--device", default=None, metavar="NAME", help="One device of the table, such as H100.")(
        command
    )
    return click.option(
        "--devices",
        "devices_file",
        type=click.Path(),
        default=None,
        metavar="FILE",
        help="A table of devices and prices of your own.",
    )(command)
