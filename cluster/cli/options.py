"""Arguments and options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
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
    "--address", default=None, metavar="HOST:PORT", help="Join this Ray cluster; without it, start one here."
)


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
