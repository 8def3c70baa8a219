"""What a simulated user is told, and where it stands in the chat that its model sees."""

from __future__ import annotations

from persona_atlas.jobs.dialogues.simulated_user import END_MARK, instructions, mirrored, said_before_end
from persona_atlas.jobs.dialogues.topics import load_conversations
from persona_atlas.jobs.messages import ChatMessage


def test_the_person_the_topic_and_the_end_are_in_the_message_that_is_replied_to():
    for domain in load_conversations():
        for persona in domain.personas:
            told = instructions(persona, persona.topics[0])
            assert all(part in told for part in (persona.description, persona.manner, persona.topics[0], END_MARK))
            system, first = mirrored(told, ())
            assert (system.role, first) == ("system", ChatMessage("user", told))
            assert persona.description not in system.content


def test_a_user_that_repeats_its_instructions_does_not_end_the_conversation():
    persona = load_conversations()[0].personas[0]
    told = instructions(persona, persona.topics[0])
    assert said_before_end(told) == (told, False)
