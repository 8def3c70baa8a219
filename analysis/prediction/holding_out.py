"""What is held out, and how conversations are permuted: folds of whole groups, and swaps of whole conversations. Pure.

Axes: N replies, P permutations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dialogues.turns import Turns

Int64 = npt.NDArray[np.int64]

FEWEST = 3
"""Groups that holding out needs: one that is predicted, and two to choose the strength with."""


@dataclass(frozen=True, eq=False)
class Scheme:
    """What is held out together.

    Attributes:
        name: Its name: ``conversations``, ``topics``, ``user personas`` or ``groups``.
        label_N: Number of the group that each reply is held out with, 0 to ``num_groups`` - 1.
        num_groups: Number of groups.
    """

    name: str
    label_N: Int64
    num_groups: int


def schemes_of(turns: Turns) -> tuple[tuple[Scheme, ...], tuple[str, ...]]:
    """Return what can be held out of replies.

    A topic is the value of the key ``topic`` of the conversations, a user persona that of ``user_persona``; without
    them, the question and the prompt of their address. Both belong to the group of the conversation.

    Args:
        turns: The replies.

    Returns:
        The schemes, conversations first, and sentences about those that are left out because they would be the same
        as one before or have too few groups.
    """
    group, prompt = turns.group.tolist(), turns.prompt_index.tolist()
    persona = _labelled(turns, "user_persona", list(zip(group, prompt, strict=True)))
    topic = _labelled(turns, "topic", list(zip(group, prompt, turns.question_index.tolist(), strict=True)))
    found: list[Scheme] = []
    notes: list[str] = []
    for name, labels in (
        ("conversations", turns.conversation_index.tolist()),
        ("topics", topic),
        ("user personas", persona),
        ("groups", group),
    ):
        numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        scheme = Scheme(name, np.array([numbers[label] for label in labels], np.int64), len(numbers))
        same = next((other for other in found if np.array_equal(other.label_N, scheme.label_N)), None)
        if same is not None:
            notes.append(f"Held-out {name} would be the same as held-out {same.name} here.")
        elif scheme.num_groups < FEWEST:
            notes.append(f"Not held out: {name}, of which there are {scheme.num_groups} and {FEWEST} are needed.")
        else:
            found.append(scheme)
    return tuple(found), tuple(notes)


def _labelled(turns: Turns, key: str, otherwise: list[tuple[object, ...]]) -> list[object]:
    labels = turns.labels(key)
    return list(otherwise) if labels is None else list(zip(turns.group.tolist(), labels.tolist(), strict=True))


def folds_of(scheme: Scheme, most: int, seed: int) -> Int64:
    """Divide the groups of a scheme into folds of about as many replies each; no group is divided.

    Args:
        scheme: What is held out together.
        most: Number of folds, at least three; with no more groups than that, each is a fold.
        seed: Seed of the division.

    Returns:
        The fold of each reply.

    Example:
        >>> folds_of(Scheme("groups", np.array([0, 0, 1, 2]), 3), 5, 0).tolist() == [0, 0, 1, 2]
        True
    """
    if scheme.num_groups <= most:
        return scheme.label_N.copy()
    sizes = np.bincount(scheme.label_N, minlength=scheme.num_groups)
    order = np.random.default_rng(seed).permutation(scheme.num_groups)
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of, filled = np.zeros(scheme.num_groups, np.int64), np.zeros(most, np.int64)
    for group in order:
        fold_of[group] = int(filled.argmin())
        filled[fold_of[group]] += sizes[group]
    return fold_of[scheme.label_N]


def permuted_places(turns: Turns, permutations: int, seed: int) -> Int64 | None:
    """Permute whole conversations within their group, so that each keeps its replies together and in sequence.

    The replies of a conversation depend on each other, so swapping single replies would make any relation look sure.
    Within the group, because what is tested is whether a message says more than the group that it is from. A reply gets
    the value of the same place in the other conversation; where that one is shorter, it begins again at its start.

    Args:
        turns: The replies.
        permutations: Number of permutations P.
        seed: Seed of the permutations.

    Returns:
        int64 ``(N, P)``: the reply whose value each reply gets. None where no group has two conversations.
    """
    conversations = list(turns.by_conversation().values())
    of_group: dict[str, list[int]] = {}
    for number, places in enumerate(conversations):
        of_group.setdefault(str(turns.group[places[0]]), []).append(number)
    if all(len(members) < 2 for members in of_group.values()):
        return None
    rng = np.random.default_rng(seed)
    place_NP = np.empty((len(turns), permutations), np.int64)
    for column in range(permutations):
        for members in of_group.values():
            for own, other in zip(members, rng.permutation(members), strict=True):
                theirs = conversations[other]
                mine = conversations[own]
                place_NP[mine, column] = theirs[np.arange(len(mine)) % len(theirs)]
    return place_NP
