"""Check a job's texts against the chat template before a model is loaded, and count those that it changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...jobs.errors import InputError
from ...jobs.plan import Plan, refuse_beyond_context
from ...jobs.wording import count_of
from ...jobs.work.units import RolloutRequest
from ...storage.format.records import RunRecord
from ...workers.chat.checks import require_closed_prompts, require_no_channel, require_pinned_on_server, turn_end
from ...workers.chat.renderer import ChatRenderer
from ...workers.chat.spans import ConversationRenderer, load_renderer, require_within_context
from ...workers.chat.survey import TextSurvey
from ...workers.chat.user_span import require_user_spans
from ...workers.models.model_files import eos_token_ids
from .progress import Progress

RENDERING_RULES = 2
"""Version of the rules by which texts become tokens; raised when the same texts become others. Kept in the record.

1: Texts that spell control tokens had real ones, ``strftime_now`` answered every format alike, reasoning in a field of
its own was left out, and a response ended only where the model's settings say; the record has no number.
"""


def require_readable(plan: Plan, directory: Path, progress: Progress, template: str | None = None) -> dict[str, int]:
    """Check every text of a job against the chat template, so that one that is wrong is found before a model is loaded.

    Conversations are rendered once. Of prompts that are to be answered, what the template writes after them is checked.
    If a pooling needs the user's message, it is located in all of them.

    Args:
        plan: The plan.
        directory: Directory with the model's tokenizer.
        progress: Prints a line before something that takes long, and one for each of the counts.
        template: Chat template to use instead of the model's; None: the model's.

    Returns:
        The rows with texts that are not taken as they are; see ``TextSurvey.counts``.

    Raises:
        InputError: The template rejects a conversation, the user's message cannot be located, a conversation, or a
            prompt with its response, is longer than the context, a response would be reasoning, or a server would read
            a prompt as other tokens.
    """
    renderer = load_renderer(directory, template)
    survey = TextSurvey(renderer.renderer)
    if plan.source.generates:
        _survey_prompts(plan, renderer, survey, progress)
    else:
        _survey_conversations(plan, renderer, survey, progress)
    for line in survey.lines():
        progress.say(line)
    return survey.counts


def _survey_prompts(plan: Plan, renderer: ConversationRenderer, survey: TextSurvey, progress: Progress) -> None:
    require_answerable(plan, renderer.renderer)
    require_room_for_responses(plan, renderer.renderer, progress)
    if plan.spec.capture.needs_user_spans:
        progress.say("Checking the prompts against the chat template.")
        require_user_spans(renderer.user_spans(), _first_requests(plan))
    openings = {request.opening: survey.add_request(request) for request in _first_requests(plan)}
    require_closed_prompts(renderer.renderer, openings)
    spelling = survey.counts.get("control_tokens", 0)
    if plan.spec.generation is not None and spelling:
        raise InputError(
            f"{count_of(spelling, 'prompt')} of the job spell a control token of the model in a text. A server would "
            "take it for the real token, while it is read as text here.",
            code="control_tokens",
            field="personas",
            hint="Change these prompts or questions, or let the workers generate.",
        )


def _survey_conversations(plan: Plan, renderer: ConversationRenderer, survey: TextSurvey, progress: Progress) -> None:
    conversations = plan.source.conversations
    progress.say(f"Checking {count_of(len(conversations), 'conversation')} against the chat template.")
    user_spans = renderer.user_spans() if plan.spec.capture.needs_user_spans else None
    if any(given.is_prompt for given in conversations):
        # A tag that a template writes whether or not a response comes next shows in no comparison of the two.
        require_closed_prompts(renderer.renderer)
    for given in conversations:
        rendered = renderer.read(given)
        require_within_context(rendered.text, plan.facts.max_context)
        if user_spans is not None:
            user_spans.of_turns(given, list(given.turn_indices()))
        survey.add_conversation(given, rendered)


_MOST_TEMPLATE_TOKENS = 1024
"""Tokens that a chat template may add to the messages, a system prompt of its own included."""


def require_room_for_responses(plan: Plan, renderer: ChatRenderer, progress: Progress) -> None:
    """Render the prompts that may leave too little of the model's context for a response.

    A token has at least one byte, so prompts with few bytes are not rendered; usually that is all of them.

    Args:
        plan: The plan of a job that generates.
        renderer: Renders prompts for its model.
        progress: Prints a line before something that takes long.

    Raises:
        InputError: A prompt and ``sampling.max_new_tokens`` are longer than the context.
    """
    sure = plan.facts.max_context - plan.spec.sampling.max_new_tokens - _MOST_TEMPLATE_TOKENS
    if plan.source.longest_prompt(plan.units, _num_bytes) <= sure:
        return
    chats = dict.fromkeys(request.messages for request in _first_requests(plan))
    longest = [chat for chat in chats if sum(_num_bytes(message.content) for message in chat) > sure]
    progress.say(f"Measuring {count_of(len(longest), 'long prompt')} against the model's context.")
    for messages in longest:
        refuse_beyond_context(plan.spec, plan.facts, len(renderer.render(messages)))


def _num_bytes(text: str) -> int:
    return len(text.encode())


def require_answerable(plan: Plan, renderer: ChatRenderer) -> None:
    """Check what does not depend on the texts of a job whose responses are to be generated.

    Args:
        plan: The plan.
        renderer: Renders prompts for its model.

    Raises:
        InputError: A response would be reasoning, or a server would write another date than is captured.
    """
    require_closed_prompts(renderer)
    require_no_channel(renderer)
    if plan.spec.generation is not None:
        require_pinned_on_server(renderer)


def require_same_rules(record: RunRecord, plan: Plan, directory: Path, template: str | None, url: str) -> None:
    """Refuse to continue a run whose texts an earlier version rendered otherwise than this one would.

    Args:
        record: The run's record.
        plan: The plan of the job, which is that of the run.
        directory: Directory with the model's tokenizer.
        template: Chat template that the spec gives; None: the model's own.
        url: The store's URL, for the message.

    Raises:
        InputError: Units of the run would be made by two rules.
    """
    if plan.source.generates:
        require_answerable(plan, load_renderer(directory, template).renderer)
    if record.rendering.get("rules") == RENDERING_RULES:
        return
    difference = next(_differences(plan, directory, template), None)
    if difference is not None:
        raise InputError(
            f"the run at {url} was begun by an earlier version, which {difference}.",
            code="other_rules",
            field="store.url",
            hint="Give this job its own store.url; what the run has stays readable.",
        )


def _differences(plan: Plan, directory: Path, template: str | None) -> Iterator[str]:
    """Yield in what the rules without a number differ for the texts of a plan."""
    renderer = load_renderer(directory, template)
    if renderer.renderer.source.clock_was_other:
        yield "wrote the date of the chat template in another format"
    survey = TextSurvey(renderer.renderer)
    if plan.source.generates:
        end = turn_end(renderer.renderer)
        named = eos_token_ids(directory) | {renderer.renderer.eos_token_id}
        if plan.spec.generation is None and end and renderer.renderer.id_of(end) not in named:
            yield f"did not end a response at {end}"
        for request in _first_requests(plan):
            survey.add_request(request)
    else:
        for given in plan.source.conversations:
            if given.tools or any(message.more() or message.reasoning is not None for message in given.chat()):
                yield "left out tools, tool calls and reasoning in a field of its own"
            survey.add_conversation(given, renderer.read(given))
    if survey.counts.get("control_tokens"):
        yield "read control tokens that texts spell as real ones"


def _first_requests(plan: Plan) -> Iterator[RolloutRequest]:
    """Make the requests that depend on no reply, and on no message of a simulated user."""
    requests = (request for unit in plan.units for request in plan.requests(unit).first(unit))
    return (request for request in requests if request.user is None)
