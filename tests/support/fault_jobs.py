"""The jobs that the fault tests run, and how often they kill them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import pytest
from persona_atlas.jobs.specs.spec import JobSpec

from fakes import small_spec
from fault_proxy import FaultProxy

KILLS = int(os.environ.get("ATLAS_FAULTS", "0"))
"""Number of kills in a loop of real runs, set by ``make faults``; 0 for the few of the ordinary tests."""

IS_THOROUGH = KILLS > 0

by_make_faults = pytest.mark.skipif(not IS_THOROUGH, reason="make faults does it")
"""Mark of tests and parameters that the ordinary tests leave out because they take long."""

T = TypeVar("T")


def sample(points: Sequence[T], kind: Callable[[T], Hashable], others: int) -> list[Any]:
    """Have the ordinary tests die at one point of each kind and at some others; ``make faults`` does all of them.

    Args:
        points: All points at which a driver may die.
        kind: Says what a point has in common with those that differ from it in a name or a number only.
        others: Number of points that are drawn from those left. ATLAS_FAULTS_SEED draws others.

    Returns:
        Parameters of a test.
    """
    first = {kind(point): index for index, point in reversed(list(enumerate(points)))}
    left = [index for index in range(len(points)) if index not in first.values()]
    # Every process that collects the tests must draw the same ones.
    drawn = random.Random(int(os.environ.get("ATLAS_FAULTS_SEED") or 0)).sample(left, others)
    kept = {*first.values(), *drawn}
    return [pytest.param(point, marks=[] if index in kept else by_make_faults) for index, point in enumerate(points)]


_TWO_ARRAYS = {"poolings": ["response_mean", "prompt_last"]}


def tiny_job(store_url: str, endpoint_url: str | None = None) -> JobSpec:
    """Make a job with two units of two rollouts and two arrays: every kind of object, and few of each."""
    counts = {"prompts": 1, "questions": 2}
    personas = {"roles": {"names": ["pirate"], **counts}, "default": counts}
    return small_spec(store_url, personas=personas, capture=_TWO_ARRAYS, store=_store(store_url, endpoint_url))


def small_job(store_url: str, endpoint_url: str | None = None) -> JobSpec:
    """Make a job with twelve units of three rollouts: roles, a trait in both polarities, the default."""
    return small_spec(store_url, store=_store(store_url, endpoint_url))


def _store(url: str, endpoint_url: str | None) -> dict[str, str | None]:
    # The region is named because asking botocore for it is a third of the CPU time of a driver of two units.
    region = os.environ.get("AWS_DEFAULT_REGION") if endpoint_url else None
    return {"url": url, "endpoint_url": endpoint_url, "region": region}


def straight(spec: JobSpec, proxy: FaultProxy) -> JobSpec:
    """Copy a job so that it reaches its store without the proxy."""
    return spec.model_copy(update={"store": spec.store.model_copy(update={"endpoint_url": proxy.server_url})})


def random_moments(count: int, longest_s: float) -> list[float]:
    """Draw times to kill at, in seconds; the seed is printed, and ``ATLAS_FAULTS_SEED`` sets it."""
    seed = int(os.environ.get("ATLAS_FAULTS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"ATLAS_FAULTS_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
    draw = random.Random(seed)
    return [draw.uniform(0, longest_s) for _ in range(count)]
