"""How alike two texts are, by their words: for tests of texts that must differ."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def common_in_order(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence; one bit a word of ``a`` (Hyyrö 2004)."""
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(a):
        places[word] |= 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        hit = row & places.get(word, 0)
        row = ((row + hit) | (row - hit)) & full
    return len(a) - row.bit_count()


def pairs_that_may_be_alike(listed: Sequence[Sequence[str]], largest_part: float) -> Iterator[tuple[int, int]]:
    """Pairs with enough words in common, order aside; found by the places of each word, so few are looked at."""
    where: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, text in enumerate(listed):
        shared: Counter[int] = Counter()
        for word, count in Counter(text).items():
            for nth in range(count):
                shared.update(where[word, nth])
                where[word, nth].append(i)
        for j, count in shared.items():
            if count > largest_part * min(len(text), len(listed[j])):
                yield j, i


def runs_in_several(listed: Sequence[Sequence[str]], length: int) -> dict[str, list[int]]:
    """Runs of so many words that stand in more than one text, with the indices of those texts."""
    places: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for i, text in enumerate(listed):
        for start in range(len(text) - length + 1):
            places[tuple(text[start : start + length])].add(i)
    return {" ".join(run): sorted(found) for run, found in places.items() if len(found) > 1}
