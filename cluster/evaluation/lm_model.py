"""The model ``persona_atlas`` of lm-evaluation-harness: its own Hugging Face model, run under edits along an axis.

It is a subclass of the harness's ``hf`` model, so tokens, batches, truncation and stop strings are those of ``hf``, and
without edits the results are, too. Only the calls of the model differ: each is made within ``intervene``.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

from ...jobs.errors import InputError
from ...jobs.interventions import Intervention
from ...workers.editing.intervene import intervene
from ..api.progress import shown_progress
from .edited_model import EvaluatedModel, load_with_edits, refuse_missing_lm_eval
from .lm_arguments import LOADING, OF_HARNESS, merged, refuse_other_types, refuse_unknown
from .made_with import model_info

MODEL_NAME = "persona_atlas"
"""Name by which the harness knows the model."""

_MADE_WITH = "persona_atlas made with"
"""Key of a cache of answers, beside hashes, that says whose they are."""


class EditedCalls:
    """What the harness's ``hf`` model computes, under edits. A part of the class that ``lm_class`` makes.

    Attributes:
        edits: The edits; None for none. They may be changed between two evaluations.
        fingerprint: Fingerprint of the model's files.
    """

    edits: Intervention | None = None
    fingerprint: str = ""
    _prompt_length: int = 0

    def _edited(self, prompt_length: int) -> AbstractContextManager[None]:
        if self.edits is None:
            return nullcontext()
        return intervene(self.model, self.edits, prompt_length=prompt_length)  # pyright: ignore[reportAttributeAccessIssue]

    def _model_call(self, inps: Any, *rest: Any, **named: Any) -> Any:
        with self._edited(self._prompt_length):
            return super()._model_call(inps, *rest, **named)  # pyright: ignore[reportAttributeAccessIssue]

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **named: Any) -> Any:
        with self._edited(int(context.shape[1])):
            return super()._model_generate(context, max_length, stop, **named)  # pyright: ignore[reportAttributeAccessIssue]

    def _loglikelihood_tokens(self, requests: list[Any], *rest: Any, **named: Any) -> list[tuple[float, bool]]:
        """Score continuations; where only responses are edited, one by one, as each begins elsewhere in its text."""
        scored = super()._loglikelihood_tokens  # pyright: ignore[reportAttributeAccessIssue]
        if self.edits is None or self.edits.of_prompt() == self.edits:
            return scored(requests, *rest, **named)
        answers: list[tuple[float, bool]] = []
        for request in requests:
            _, context, continuation = request
            # The harness cuts a text from the left to one token more than the context.
            cut = max(0, len(context) + len(continuation) - (self.max_length + 1))  # pyright: ignore[reportAttributeAccessIssue]
            self._prompt_length = max(0, len(context) - cut)
            answers += scored([request], disable_tqdm=True, override_bs=1)
        self._prompt_length = 0
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes about the model, its edits included."""
        info: dict[str, Any] = super().get_model_info()  # pyright: ignore[reportAttributeAccessIssue]
        return info | model_info(self.fingerprint, self.edits)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take a cache of answers, which the harness keeps by the texts alone; see ``--use_cache``.

        Raises:
            InputError: The answers in it are another model's, or were made under other edits.
        """
        answers = cache_hook.dbdict
        made = {**model_info(self.fingerprint, self.edits), "dtype": str(self.model.dtype)}  # pyright: ignore[reportAttributeAccessIssue]
        if answers is not None:
            if len(answers) and answers.get(_MADE_WITH) != made:
                raise InputError(
                    "has the answers of another model, or of this one under other edits.",
                    code="other_cache",
                    field="use_cache",
                    hint="Give each model and each cap or steering a cache of its own.",
                )
            answers[_MADE_WITH] = made
            answers.commit()
        super().set_cache_hook(cache_hook)  # pyright: ignore[reportAttributeAccessIssue]


@lru_cache(maxsize=1)
def lm_class() -> Any:
    """Make the class, and register it with the harness as ``persona_atlas``.

    Returns:
        A subclass of ``lm_eval.models.huggingface.HFLM``. Its arguments are those of ``load_with_edits`` and, of the
        ``hf`` model, those that do not concern loading, such as ``batch_size`` and ``max_length``.

    Raises:
        InputError: The harness is not installed.
    """
    try:
        from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
        from lm_eval.utils import simple_parse_args_string  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise refuse_missing_lm_eval(error) from error

    @register_model(MODEL_NAME)
    class PersonaAtlasLM(EditedCalls, HFLM):
        def __init__(self, store: str | None = None, **arguments: Any) -> None:
            known = set(inspect.signature(HFLM.__init__).parameters) & set(OF_HARNESS)
            refuse_unknown({"store": store, **arguments}, known)
            refuse_other_types(arguments)
            assert store is not None
            loading = {name: arguments.pop(name) for name in LOADING if name in arguments}
            loaded, self.edits = load_with_edits(str(store), shown_progress(True), **loading)
            self._start(loaded, **arguments)

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
            """Make it of its arguments, of which the harness's command has some as options too."""
            return cls(**merged(arg_dict, additional_config or {}))

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
            """Make it of its arguments as ``name=value,...``; see ``create_from_arg_obj``."""
            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        @classmethod
        def of(cls, loaded: EvaluatedModel, **arguments: Any) -> Any:
            """Make it of a model that is loaded, without edits."""
            made = cls.__new__(cls)
            made._start(loaded, **arguments)
            return made

        def _start(self, loaded: EvaluatedModel, **arguments: Any) -> None:
            self.fingerprint = loaded.facts.fingerprint
            # Off unless it is asked for, as where activations are captured.
            arguments.setdefault("enable_thinking", False)
            HFLM.__init__(self, pretrained=loaded.model, tokenizer=loaded.tokenizer, **arguments)

    return PersonaAtlasLM
