"""``persona-atlas lm-eval``: the command line of lm-evaluation-harness, where the model ``persona_atlas`` is known."""

from __future__ import annotations

import sys
import traceback

import click

from ....jobs.errors import InputError
from ...evaluation.edited_model import refuse_missing_lm_eval
from ...evaluation.lm_model import MODEL_NAME, lm_class

_COMMANDS = ("run", "ls", "validate")


@click.command(
    name="lm-eval",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(arguments: tuple[str, ...]) -> None:
    """Run lm-evaluation-harness with a model that is capped or steered.

    All arguments are those of its command lm_eval. Where --model is not given, it is persona_atlas, whose --model_args
    are store=AXIS and those of cap, steer, ablate, layers and positions that are wanted.
    """
    lm_class()
    try:
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise refuse_missing_lm_eval(error) from error
    sys.argv = ["lm_eval", *_with_model(arguments)]
    try:
        cli_evaluate()
    except (ValueError, TypeError, LookupError, OSError, ImportError) as error:
        if _was_asking(error):
            raise
        raise _refused(error) from error


def _was_asking(error: BaseException) -> bool:
    """Whether questions were asked already, so that the error is not one of the arguments."""
    return any(frame.name == "evaluate" for frame in traceback.extract_tb(error.__traceback__))


def _refused(error: Exception) -> InputError:
    """Map what the harness raises before it asks anything: it checks its arguments by using them."""
    text = " ".join(str(error).split())
    if text.startswith("Tasks not found"):
        return InputError(
            f"lm-evaluation-harness has no such tasks: {text.partition(': ')[2]}.",
            code="no_such_task",
            field="--tasks",
            hint="persona-atlas lm-eval ls tasks lists them; those of your own need --include_path.",
        )
    return InputError(
        f"lm-evaluation-harness cannot begin with these arguments: {type(error).__name__}: {text[:300]}",
        code="harness_refused",
        hint="persona-atlas lm-eval run --help lists them. Public tasks fetch their data from the hub.",
    )


def _with_model(arguments: tuple[str, ...]) -> list[str]:
    """Name the model where no other one is named."""
    given = list(arguments)
    is_other = not given or given[0] in _COMMANDS[1:] or {"-h", "--help"} & set(given)
    if is_other or any(one == "--model" or one.startswith(("--model=", "-M", "--config", "-C")) for one in given):
        return given
    start = 1 if given[0] == "run" else 0
    return [*given[:start], "--model", MODEL_NAME, *given[start:]]
