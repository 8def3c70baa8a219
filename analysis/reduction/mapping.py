"""How the work on personas is spread: a plain map, over threads here or over the tasks of a cluster elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol, TypeVar

from ...jobs.wording import count_of
from ...storage.locations.location import Location

W = TypeVar("W")
R = TypeVar("R")

Say = Callable[[str], None]

_MANY = 100
"""So many personas take long enough that people want to see progress."""


class Mapper(Protocol):
    """Applies a function to every piece of work, in any order.

    Work, results and function can be pickled; the location is that of the store, as the process that works sees it.
    """

    def __call__(
        self, function: Callable[[Location, W], R], location: Location, works: Sequence[W], num_threads: int
    ) -> Iterator[tuple[int, R]]:
        """Yield the number of each piece of work and its result, as they come.

        Args:
            function: A function of a module.
            location: The store.
            works: The pieces.
            num_threads: How many of them fit into this machine's memory at a time.
        """
        ...


def map_in_threads(
    function: Callable[[Location, W], R], location: Location, works: Sequence[W], num_threads: int
) -> Iterator[tuple[int, R]]:
    """Apply a function to every piece of work in threads of this process; see ``Mapper``.

    Decoding and arithmetic release Python's lock, so threads use all cores.

    Args:
        function: A function.
        location: The store.
        works: The pieces.
        num_threads: Number of threads.

    Yields:
        The number of each piece of work and its result, as they come.
    """
    pool = ThreadPoolExecutor(num_threads)
    try:
        numbers = {pool.submit(function, location, work): number for number, work in enumerate(works)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    finally:
        # After an error or Ctrl-C, what has not begun is not begun, and what has ends first.
        pool.shutdown(cancel_futures=True)


def with_progress(results: Iterator[tuple[int, R]], total: int, what: str, say: Say | None) -> list[R]:
    """Collect results in the order of the work; say what is done at the start, and of many after each tenth.

    Args:
        results: Numbers and results, in any order.
        total: How many there will be.
        what: What is done with the personas, as ``Averaging``.
        say: Called with a line of text; None: nothing is said.
    """
    found: dict[int, R] = {}
    step = max(1, total // 10)
    if say:
        say(f"{what} {count_of(total, 'persona')}.")
    for number, result in results:
        found[number] = result
        if say and total >= _MANY and (len(found) % step == 0 or len(found) == total):
            say(f"{what}: {len(found)} of {total} are done.")
    return [found[number] for number in range(total)]
