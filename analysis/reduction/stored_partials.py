"""Partial results of all personas in the store: which are missing, what they can begin with, and damaged ones again.

What is computed of a persona, its sums or its projections, is the business of a ``PartialKind``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from ...storage.derived.partials import DamagedPartialError, Partial, names_by_persona, open_partial
from ...storage.format import layout
from ...storage.locations.location import Location
from .budget import threads
from .mapping import Mapper, Say, with_progress
from .rollouts import Persona
from .unit_work import ArrayOfRun, UnitKey, UnitLengths, UnitsToRead, find_base, is_remote, is_whole

PARALLEL_READS = 32
"""Partial results that are opened or read at a time: each costs a round trip."""


@dataclass(frozen=True, eq=False)
class PartialWork:
    """The partial result of one persona that is to be computed.

    Attributes:
        to_read: All of its units.
        base: An earlier partial result of some of the units; None: all are read.
        path: Path of the result.
        is_replacement: Whether a damaged object has that path.
    """

    to_read: UnitsToRead
    base: Partial | None
    path: str
    is_replacement: bool


W = TypeVar("W", bound=PartialWork)
R = TypeVar("R")


def store_partial(location: Location, work: W, encoded: Callable[[Location, W], bytes]) -> None:
    """Compute the partial result of one persona and store it.

    Args:
        location: The store.
        work: The persona.
        encoded: Computes the object's bytes; without the base if that turns out to be damaged.

    Raises:
        StoreError: A committed value is missing or damaged.
    """
    try:
        data = encoded(location, work)
    except DamagedPartialError:
        data = encoded(location, replace(work, base=None))
    if work.is_replacement:
        location.write(work.path, data)
    else:
        # Not flushed: a damaged one is computed again, and flushing two objects of a persona costs a tenth of a pass.
        location.create(work.path, data, flush=False)


class PartialKind(Protocol[W]):
    """What distinguishes one kind of partial results from another.

    Attributes:
        folder: Its folder in the store.
        doing: What is done with the personas, for people.
        compute: Computes and stores the work of one persona; a function of a module, as other processes are given it.
    """

    @property
    def folder(self) -> str:
        """See the class."""
        ...

    @property
    def doing(self) -> str:
        """See the class."""
        ...

    @property
    def compute(self) -> Callable[[Location, W], None]:
        """See the class."""
        ...

    def name(self, persona: Persona) -> tuple[str, str]:
        """Return what the object is called: a key that its earlier versions share, and a digest of its content."""
        ...

    def unit_keys(self, persona: Persona) -> set[UnitKey]:
        """Return unit, row block and digest of each unit of a persona."""
        ...

    def num_groups(self, persona: Persona) -> int:
        """Return how many sums a thread holds of a persona, for the memory."""
        ...

    def work(self, persona: Persona, plain: PartialWork) -> W:
        """Add to the work what this kind needs."""
        ...


class StoredPartials(Generic[W]):
    """The partial results of all personas, of one kind.

    Args:
        location: The store.
        array: The array that is reduced.
        lengths: Lengths of units.
        mapper: Spreads the work.
        num_cores: Cores that may be used here.
        kind: What is computed.
    """

    def __init__(
        self,
        location: Location,
        array: ArrayOfRun,
        lengths: UnitLengths,
        mapper: Mapper,
        num_cores: int,
        kind: PartialKind[W],
    ) -> None:
        self._location = location
        self._array = array
        self._lengths = lengths
        self._mapper = mapper
        self._num_cores = num_cores
        self._kind = kind
        self._folder = layout.partial_folder(kind.folder, array.hook_point, array.pooling)
        self._partials: dict[tuple[str, str, str], Partial] = {}

    @property
    def paths(self) -> list[str]:
        """Paths of the objects."""
        return [partial.path for partial in self._partials.values()]

    def prepare(self, personas: Sequence[Persona], in_use: set[str], say: Say | None) -> None:
        """Compute and store what is not there yet, and open all.

        Args:
            personas: The personas.
            in_use: Paths of partial results that the current reduction was made of.
            say: Called with a line of progress.

        Raises:
            StoreError: A committed value is missing or damaged.
        """
        stored = names_by_persona(self._location.names(self._folder))
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            planned = list(pool.map(lambda persona: self._missing(persona, stored, in_use), personas))
        works = [work for work in planned if work is not None]
        if works:
            groups = max(self._kind.num_groups(persona) for persona in personas)
            shape = (self._array.num_layers, self._array.rows_per_block, self._array.d_model)
            num_threads = threads(*shape, groups, self._num_cores, waits=is_remote(self._location))
            done = self._mapper(self._kind.compute, self._location, works, num_threads)
            with_progress(done, len(works), self._kind.doing, say)
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            opened = pool.map(self._opened, personas)
            self._partials = {persona.address: partial for persona, partial in zip(personas, opened, strict=True)}

    def use(self, persona: Persona, take: Callable[[Partial], R]) -> R:
        """Take something from the partial result of a persona; a damaged one is computed again.

        Args:
            persona: The persona.
            take: Reads it.

        Raises:
            StoreError: A committed value is missing or damaged.
        """
        try:
            return take(self._partials[persona.address])
        except DamagedPartialError:
            self._partials[persona.address] = self._made_again(persona)
            return take(self._partials[persona.address])

    def _opened(self, persona: Persona) -> Partial:
        try:
            return open_partial(self._location, self._path(persona))
        except DamagedPartialError:
            # Deleted since, as by a ``gc`` at the same time.
            return self._made_again(persona)

    def _made_again(self, persona: Persona) -> Partial:
        work = self._work(persona, None, is_replacement=True)
        self._kind.compute(self._location, work)
        return open_partial(self._location, work.path)

    def _path(self, persona: Persona) -> str:
        return layout.partial_path(
            self._kind.folder, self._array.hook_point, self._array.pooling, *self._kind.name(persona)
        )

    def _missing(self, persona: Persona, stored: dict[str, list[str]], in_use: set[str]) -> W | None:
        path = self._path(persona)
        names = stored.get(self._kind.name(persona)[0], [])
        is_there = path.removeprefix(f"{self._folder}/") in names
        if is_there and is_whole(self._location, path, persona):
            return None
        others = [name for name in names if f"{self._folder}/{name}" != path]
        base = find_base(self._location, self._folder, others, self._kind.unit_keys(persona), in_use)
        return self._work(persona, base, is_replacement=is_there)

    def _work(self, persona: Persona, base: Partial | None, *, is_replacement: bool) -> W:
        to_read = self._lengths.to_read(persona.units)
        return self._kind.work(persona, PartialWork(to_read, base, self._path(persona), is_replacement))
