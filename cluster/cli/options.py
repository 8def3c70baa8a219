"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ...jobs.errors import InputError
from ...jobs.files.user_paths import is_directory
from ...jobs.specs.store_spec import S3Access

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

spec_argument: Decorator = click.argument("spec_file", metavar="SPEC", type=click.Path())
store_argument: Decorator = click.argument("store_url", metavar="STORE")
set_option: Decorator = click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override a field of the spec; repeatable."
)
json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
endpoint_option: Decorator = click.option(
    "--endpoint-url", default=None, help="URL of an S3-compatible server (or set AWS_ENDPOINT_URL_S3)."
)
address_option: Decorator = click.option(
    "--address",
    default=None,
    metavar="URL",
    help="The cluster's dashboard, such as http://head:8265 (or set RAY_API_SERVER_ADDRESS).",
)
join_option: Decorator = click.option(
    "--address",
    default=None,
    metavar="HOST:PORT",
    help="Ray cluster to join; without it, Ray is started on this machine.",
)

grow_option: Decorator = click.option(
    "--grow",
    is_flag=True,
    help="Add to the run in the store what the spec has more of: personas, prompts, questions, samples, conversations.",
)

_requester_pays_option: Decorator = click.option(
    "--requester-pays", is_flag=True, help="Pay for the requests to a bucket whose owner demands it."
)
_anonymous_option: Decorator = click.option(
    "--anonymous", is_flag=True, help="Send requests unsigned, as a public bucket takes them."
)


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that writes to a bucket; it gets them as ``access``, an ``S3Access``."""

    @_requester_pays_option
    @wraps(command)
    def with_access(*arguments: Any, requester_pays: bool, **options: Any) -> Any:
        return command(*arguments, access=S3Access(requester_pays=requester_pays), **options)

    return with_access


def reading_access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that only reads a bucket; it gets them as ``access``, an ``S3Access``."""

    @_requester_pays_option
    @_anonymous_option
    @wraps(command)
    def with_access(*arguments: Any, requester_pays: bool, anonymous: bool, **options: Any) -> Any:
        access = S3Access(requester_pays=requester_pays, anonymous=anonymous)
        return command(*arguments, access=access, **options)

    return with_access


_CODE_OPTIONS: list[Decorator] = [
    click.option(
        "--code",
        type=click.Choice(["ship", "installed"]),
        default="ship",
        show_default=True,
        help="Upload this package with the job, or use the one installed on the nodes.",
    ),
    click.option("--image", default=None, help="Container image for the job's processes; it must have this package."),
    click.option(
        "--driver-resource", default="", metavar="NAME", help="Keep the driver on nodes with this Ray resource."
    ),
    click.option(
        "--scale-up",
        "may_scale_up",
        is_flag=True,
        help="Accept a job that needs more nodes than there are: an autoscaler adds them.",
    ),
]


def code_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``SubmitOptions``: where a job's code comes from and where its driver runs."""
    for option in reversed(_CODE_OPTIONS):
        command = option(command)
    return command


def refuse_blank_values(command: click.Command) -> None:
    """Make a command, and those below it, refuse a blank text for any argument or option that is given.

    A blank usually comes from a variable of the shell that is not set. As a path it would be this directory, and as an
    option it would count as not given.
    """
    for parameter in command.params:
        if parameter.callback is None and isinstance(parameter.type, click.types.StringParamType | click.Path):
            parameter.callback = _not_blank
    if isinstance(command, click.Group):
        for below in command.commands.values():
            refuse_blank_values(below)


def _not_blank(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    is_given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
    texts = value if isinstance(value, tuple) else (value,)
    if is_given and any(isinstance(text, str) and not text.strip() for text in texts):
        raise InputError(
            "is blank.", code="blank_value", field=name_of(parameter), hint="Give it a value. Is a variable not set?"
        )
    return value


def name_of(parameter: click.Parameter) -> str:
    """Return the name of an option or argument as it is typed, or as the help shows it."""
    if isinstance(parameter, click.Option):
        return parameter.opts[0]
    return (parameter.metavar or (parameter.name or "").upper()).strip("[].")


def is_store(target: str) -> bool:
    """Whether an argument names a store rather than a job.

    Args:
        target: A job's id, a directory or an ``s3://`` URL.

    Example:
        >>> is_store("run-3f9a1c"), is_store("s3://bucket/run")
        (False, True)
    """
    if "/" in target or "\\" in target or target in (".", "..") or target.startswith("~"):
        return True
    return is_directory(Path(target), "JOB|STORE")


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose devices from the table."""
    command = click.option(
        "--device", default=None, metavar="NAME", help="Only this device of the table, such as H100."
    )(command)
    return click.option(
        "--devices",
        "devices_file",
        type=click.Path(),
        default=None,
        metavar="FILE",
        help="Your own table of devices and prices.",
    )(command)


def axis_option(*, required: bool) -> Decorator:
    """Make the option ``--axis`` of a command that projects on an axis.

    Args:
        required: Whether the command needs one.
    """
    what = "A run that was reduced, imported vectors, or a folder of published ones."
    return click.option("--axis", required=required, help=what)


layer_option: Decorator = click.option(
    "--layer", type=int, default=None, help="Layer of the projections; by default the axis's middle layer."
)
reduction_option: Decorator = click.option(
    "--reduction", default=None, metavar="ID", help="A stored reduction of the axis's run; by default the current."
)
transfer_option: Decorator = click.option(
    "--transfer", is_flag=True, help="Another model than the axis's is meant; every output says so."
)
by_option: Decorator = click.option(
    "--by", default=None, metavar="KEY", help="Group by this key of the conversations; by default by persona or file."
)
