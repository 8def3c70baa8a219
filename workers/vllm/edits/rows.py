"""Which rows of the workers' tables the interventions of requests have: each intervention and each direction once.

The rows of an intervention stay where they are while a request uses it, and are kept afterwards until they are needed
for another, so that a job whose requests share a few interventions uploads each once. Pure: knows no vLLM.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ....jobs.errors import UnitError
from ....jobs.interventions import Direction, Edit, Intervention
from .plan import NO_EDIT, EditPlan, EditUpload, RequestEdits


@dataclass(eq=False)
class SettingRows:
    """The rows that one intervention has.

    Attributes:
        prompt: Row of the table of settings for prompt tokens.
        response: The same for response tokens.
        directions: The directions that it needs, each once.
        salt: Keys the prompts that may be shared: a digest of the edits that act on prompts; None without any.
        digest: A digest of all edits, where not all act on prompts; else None.
        users: Number of requests that use it.
    """

    prompt: int
    response: int
    directions: tuple[Direction, ...]
    salt: str | None
    digest: str | None
    users: int = 0

    def of_request(self, response_start: int) -> RequestEdits:
        """Make the edits of one request.

        Args:
            response_start: First token of its response.
        """
        key = "" if self.digest is None else hashlib.sha256(f"{self.digest} {response_start}".encode()).hexdigest()
        return RequestEdits(self.prompt, self.response, response_start, key)


class EditRows:
    """The rows of the tables, and who uses them.

    Args:
        plan: Where requests may be edited, and how many rows there are.
        num_layers: Decoder layers of the model.
        d_model: Width of its residual stream.
    """

    def __init__(self, plan: EditPlan, num_layers: int, d_model: int) -> None:
        self._plan = plan
        self._num_layers = num_layers
        self._d_model = d_model
        self._free_settings = list(range(plan.settings, NO_EDIT, -1))
        self._free_directions = list(range(plan.directions, NO_EDIT, -1))
        self._known: OrderedDict[Intervention, SettingRows] = OrderedDict()
        self._direction_rows: dict[Direction, int] = {}
        self._users_of_direction: dict[Direction, int] = {}

    def _check(self, intervention: Intervention) -> None:
        """Refuse an intervention that the model cannot be given, whatever other requests there are."""
        intervention.require_applicable(self._num_layers, self._d_model)
        _assigned(intervention.edits, self._plan.places)
        needed = len({edit.vector for edit in intervention.edits})
        if needed > self._plan.directions:
            raise UnitError(
                f"the intervention has {needed} directions, and vLLM's workers hold {self._plan.directions}.",
                code="too_many_directions",
                hint="Set placement.engine to builtin.",
            )

    def take(self, intervention: Intervention) -> tuple[SettingRows, EditUpload | None] | None:
        """Give a request the rows of its intervention, until it gives them back.

        Args:
            intervention: With at least one edit.

        Returns:
            The rows, and what must be written into them first; None for the latter where it was. None at all where the
            requests in flight leave no room.

        Raises:
            UnitError: It does not fit the model, edits a layer more often than it may be edited here, or needs more
                rows than there are.
        """
        known = self._known.get(intervention)
        upload = None
        if known is None:
            self._check(intervention)
            if not self._make_room(intervention):
                return None
            known, upload = self._written(intervention)
            self._known[intervention] = known
        self._known.move_to_end(intervention)
        known.users += 1
        return known, upload

    def give_back(self, intervention: Intervention) -> None:
        """End the use of an intervention by one request."""
        self._known[intervention].users -= 1

    def _make_room(self, intervention: Intervention) -> bool:
        """Forget interventions that nobody uses, the longest unused first, until there is room for another."""
        needed = {edit.vector for edit in intervention.edits}
        # One for prompts and one for responses, where they differ and both are edited.
        settings = 1 + (intervention.of_prompt() not in (intervention, Intervention()))
        unused = [one for one, rows in self._known.items() if not rows.users]

        def is_room() -> bool:
            missing = sum(vector not in self._direction_rows for vector in needed)
            return len(self._free_directions) >= missing and len(self._free_settings) >= settings

        for one in unused:
            if is_room():
                break
            self._forget(one)
        return is_room()

    def _forget(self, intervention: Intervention) -> None:
        rows = self._known.pop(intervention)
        self._free_settings += {rows.prompt, rows.response} - {NO_EDIT}
        for vector in rows.directions:
            self._users_of_direction[vector] -= 1
            if not self._users_of_direction[vector]:
                del self._users_of_direction[vector]
                self._free_directions.append(self._direction_rows.pop(vector))

    def _written(self, intervention: Intervention) -> tuple[SettingRows, EditUpload]:
        """Choose rows for an intervention."""
        vectors = tuple(dict.fromkeys(edit.vector for edit in intervention.edits))
        new: list[tuple[int, bytes]] = []
        for vector in vectors:
            if vector not in self._direction_rows:
                row = self._direction_rows[vector] = self._free_directions.pop()
                new.append((row, vector.unit.astype("<f4").tobytes()))
            self._users_of_direction[vector] = self._users_of_direction.get(vector, 0) + 1
        of_prompt = intervention.of_prompt().edits
        is_alike = of_prompt == intervention.edits
        response = self._free_settings.pop()
        settings = [(response, self._setting(intervention.edits))]
        prompt = NO_EDIT
        if is_alike:
            prompt = response
        elif of_prompt:
            prompt = self._free_settings.pop()
            settings.append((prompt, self._setting(of_prompt)))
        salt = digest_of_edits(of_prompt) if of_prompt else None
        digest = None if is_alike else digest_of_edits(intervention.edits)
        return SettingRows(prompt, response, vectors, salt, digest), EditUpload(tuple(new), tuple(settings))

    def _setting(self, edits: tuple[Edit, ...]) -> tuple[tuple[int, int, float, float, float], ...]:
        """Return a row of the table of settings; see ``EditUpload``."""
        places = _assigned(edits, self._plan.places)
        return tuple(
            (place, self._direction_rows[edit.vector], edit.terms.a, edit.terms.b, edit.terms.floor)
            for place, edit in zip(places, edits, strict=True)
        )


def _assigned(edits: tuple[Edit, ...], places: tuple[int, ...]) -> list[int]:
    """Give every edit a place of its layer, in the order of the edits.

    Raises:
        UnitError: There is none.
    """
    free = {layer: [place for place, where in enumerate(places) if where == layer] for layer in set(places)}
    found: list[int] = []
    for edit in edits:
        here = free.get(edit.layer, [])
        if not here:
            most = places.count(edit.layer)
            raise UnitError(
                f"the intervention edits layer {edit.layer} {most + 1} times, and the engine was loaded to edit it "
                f"{most} times in one request.",
                code="no_intervention",
                hint="Name the layer in edited_layers of the engine's settings as often as a request edits it.",
            )
        found.append(here.pop(0))
    return found


def digest_of_edits(edits: Sequence[Edit]) -> str:
    """Identify edits by what they do.

    Args:
        edits: The edits, in order.
    """
    found = hashlib.sha256()
    for edit in edits:
        # repr: two floors that differ in their last bit are two interventions.
        found.update(repr((edit.layer, edit.positions, tuple(edit.terms), len(edit.vector))).encode())
        found.update(edit.vector.data)
    return found.hexdigest()
