"""Check the model of a job without its weights: architecture, engines, how it splits, prompts and context."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...jobs.engines import VLLM_ARCHITECTURES, against_model, vllm_architecture
from ...jobs.errors import InputError
from ...jobs.messages import ChatMessage
from ...jobs.model_facts import ModelFacts
from ...jobs.plan import Plan, refuse_beyond_context
from ...jobs.sizing.known_models import known_configurations
from ...jobs.specs.spec_parts import ModelSpec
from ...jobs.vllm.parallelism import tensor_parallel_sizes
from ...workers.chat.checks import left_channel, left_open, turn_end
from ...workers.chat.renderer import ChatRenderer
from ...workers.chat.spans import load_renderer
from ...workers.chat.template import read_chat_template
from ...workers.models.model_files import find_sources
from .progress import Progress

if TYPE_CHECKING:
    from ...workers.models.model_check import ModelCheck

_MOST_GPUS = 64
"""Largest tensor parallel size that is listed."""

_RENDERED = 20
"""Prompts that are rendered to find the longest one."""

_QUESTION = ChatMessage("user", "Who are you?")
_SYSTEM = ChatMessage("system", "You are a pirate.")


@dataclass(frozen=True, slots=True)
class ChatCheck:
    """What a model's chat template does.

    Attributes:
        prompt: The text of a prompt with a system message and a question.
        has_system_role: Whether it renders system messages; if not, their text is in front of the user's message.
        inserts_system_prompt: Whether it writes a system prompt of its own where there is none.
        opens_reasoning: Tag of reasoning that a prompt leaves open, for which a run is refused; None for none.
        leaves_channel: Header of the channel that a prompt leaves to the model to choose, so that a response would
            begin with reasoning, for which a run is refused; None for none.
        ends_with: Control token that ends a response; None if there is none.
    """

    prompt: str
    has_system_role: bool
    inserts_system_prompt: bool
    opens_reasoning: str | None
    leaves_channel: str | None
    ends_with: str | None


@dataclass(frozen=True, slots=True)
class JobCheck:
    """What can be told of a job's model without its weights.

    Attributes:
        model: Its architecture.
        vllm: ``model_impl`` with which vLLM captures it; None if it does not.
        against_vllm: Why vLLM does not capture it; None if it does.
        tensor_parallel_sizes: Sizes over which vLLM can split it; only 1 for a model that it does not capture.
        pipelines: Whether vLLM can split its layers over the stages of a pipeline (``placement.pipeline_parallel``).
        chat: What its chat template does; None where its tokenizer is not at hand.
        longest_prompt_tokens: Tokens of the job's longest prompt, at least; None for given texts.
        tokens_are_counted: Whether they were counted with the model's tokenizer; else a word counts as one.
        max_context: Longest conversation, in tokens.
    """

    model: ModelCheck
    vllm: str | None
    against_vllm: str | None
    tensor_parallel_sizes: list[int]
    pipelines: bool
    chat: ChatCheck | None
    longest_prompt_tokens: int | None
    tokens_are_counted: bool
    max_context: int

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return asdict(self)


def check_job(plan: Plan, progress: Progress) -> JobCheck:
    """Check the model of a planned job without its weights.

    Args:
        plan: The plan.
        progress: Prints a line before something that takes long.

    Raises:
        InputError: The model cannot be built, or its context is too short for the longest prompt and its response.
    """
    # It imports torch, which the command line does not where it need not.
    from ...workers.models.model_check import check_model

    spec = plan.spec
    config, directory = _configuration(spec.model, progress)
    renderer = _renderer(directory, spec.model)
    longest = _longest_prompt(plan, renderer)
    if longest is not None:
        refuse_beyond_context(spec, plan.facts, longest)
    architecture = vllm_architecture(plan.facts)
    return JobCheck(
        model=check_model(config),
        vllm=architecture.implementation if architecture else None,
        against_vllm=against_model(plan.facts),
        tensor_parallel_sizes=sizes_of(plan.facts),
        pipelines=architecture is not None and architecture.pipelines,
        chat=_chat(renderer) if renderer is not None else None,
        longest_prompt_tokens=longest,
        tokens_are_counted=renderer is not None,
        max_context=plan.facts.max_context,
    )


def sizes_of(facts: ModelFacts) -> list[int]:
    """Return the tensor parallel sizes of a model, ascending.

    Args:
        facts: The model.
    """
    architecture = vllm_architecture(facts)
    if architecture is None:
        return [1]
    return tensor_parallel_sizes(facts, _MOST_GPUS, shares_kv_heads=architecture.shares_kv_heads)


def lines_of(check: JobCheck) -> list[list[str]]:
    """Format a check as lines of (label, finding) for people."""
    model = check.model
    points = "known when it is loaded" if model.hook_points is None else ", ".join(model.hook_points)
    captured = f"yes, model_impl {check.vllm}"
    if check.vllm is None:
        captured = f"no: it {check.against_vllm}; it captures {', '.join(VLLM_ARCHITECTURES)}"
    counted = "" if check.tokens_are_counted else " at least (a word counts as a token)"
    longest = check.longest_prompt_tokens
    chat = check.chat
    return [
        ["class", f"{model.model_class}, {model.num_parameters:,} parameters"],
        ["decoder layers", f"{model.n_layers} x {model.decoder_layer}"],
        ["hook points", points],
        ["vLLM captures it", captured],
        ["tensor parallel", ", ".join(map(str, check.tensor_parallel_sizes))],
        ["pipeline parallel", "yes" if check.pipelines else "no"],
        ["context", f"{check.max_context:,} tokens"],
        *([] if longest is None else [["longest prompt", f"{longest:,} tokens{counted}"]]),
        *([["chat", "its tokenizer is not on this machine"]] if chat is None else _chat_lines(chat)),
    ]


def _chat_lines(chat: ChatCheck) -> list[list[str]]:
    own = ", inserts one of its own where there is none" if chat.inserts_system_prompt else ""
    has = "has a role of its own" if chat.has_system_role else "no role: its text stands in front of the user's message"
    reasoning = f"opened by the prompt with {chat.opens_reasoning}: refused" if chat.opens_reasoning else "off"
    if chat.leaves_channel:
        reasoning = f"the prompt leaves {chat.leaves_channel} to the model, which reasons before it: refused"
    return [
        ["prompt", chat.prompt],
        ["system prompt", f"{has}{own}"],
        ["reasoning", reasoning],
        ["a response ends with", chat.ends_with or "no control token"],
    ]


def _configuration(model: ModelSpec, progress: Progress) -> tuple[Any, Path | None]:
    """Return a model's configuration and the directory of its small files; None where only the table knows it."""
    from ...workers.models.model_check import config_of

    known = known_configurations().get(model.source)
    try:
        sources = find_sources(model, progress.say, cached_first=True)
    except InputError:
        if known is None:
            raise
        return config_of(known), None
    checkpoint = sources.check()
    return checkpoint.config, sources.model.directory


def _renderer(directory: Path | None, model: ModelSpec) -> ChatRenderer | None:
    if directory is None:
        return None
    try:
        return load_renderer(directory, read_chat_template(model)).renderer
    except InputError as error:
        # A configuration without a tokenizer is enough for the rest.
        if error.code not in ("no_tokenizer", "no_chat_template"):
            raise
        return None


def _chat(renderer: ChatRenderer) -> ChatCheck:
    return ChatCheck(
        prompt=renderer.text(renderer.for_template([_SYSTEM, _QUESTION]), generate=True),
        has_system_role=renderer.has_system_role,
        inserts_system_prompt=renderer.inserted_system_text,
        opens_reasoning=left_open(renderer),
        leaves_channel=left_channel(renderer),
        ends_with=turn_end(renderer),
    )


def _longest_prompt(plan: Plan, renderer: ChatRenderer | None) -> int | None:
    """Return the tokens of the longest prompt: of its texts, and of what the template writes around them."""
    if not plan.source.generates:
        return None
    if renderer is None:
        return plan.source.longest_prompt(plan.units, lambda text: len(text.split()))
    size = cache(lambda text: len(renderer.render([ChatMessage("user", text)])))
    chats = dict.fromkeys(request.messages for unit in plan.units for request in plan.requests(unit).first(unit))
    # Rendering all of them would take minutes, and the longest is among those whose texts have most tokens.
    longest = nlargest(_RENDERED, chats, key=lambda chat: sum(size(message.content) for message in chat))
    return max((len(renderer.render(chat)) for chat in longest), default=0)
