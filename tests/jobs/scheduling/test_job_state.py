"""Where a job is, from every mix of facts: the store's word over Ray's, and never success without every unit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.scheduling.job_state import Facts, JobState, RayState, state_of

FACTS = st.builds(
    Facts,
    done=st.integers(0, 4),
    planned=st.integers(0, 4),
    is_driven=st.booleans(),
    told=st.none() | st.sampled_from([JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]),
    is_status_fresh=st.booleans(),
    ray=st.none() | st.sampled_from(list(RayState)),
)


@given(FACTS)
@settings(max_examples=400)
def test_whatever_is_known_a_job_is_in_one_state_with_a_reason(facts: Facts):
    state, why = state_of(facts)
    assert why
    if state is JobState.SUCCEEDED:
        assert facts.is_whole
    if facts.is_whole:
        assert state in (JobState.SUCCEEDED, JobState.RUNNING)
    if state is JobState.QUEUED:
        assert not facts.is_driven
        assert facts.ray in (None, RayState.PENDING)
    if facts.ray in (RayState.STOPPED, RayState.FAILED, RayState.SUCCEEDED) and not facts.is_driven:
        assert state is not JobState.QUEUED


@given(FACTS)
@settings(max_examples=400)
def test_a_driver_at_work_is_believed_over_ray(facts: Facts):
    state, _ = state_of(facts)
    says_it_works = facts.told is None or facts.told is JobState.RUNNING
    if facts.is_driven and facts.is_status_fresh and says_it_works:
        assert state is JobState.RUNNING
    if state is JobState.RUNNING and facts.ray is None:
        assert facts.is_driven or facts.is_status_fresh


@given(FACTS)
@settings(max_examples=400)
def test_one_more_unit_never_turns_success_into_anything_else(facts: Facts):
    if state_of(facts)[0] is JobState.SUCCEEDED:
        more = Facts(facts.done + 1, facts.planned, facts.is_driven, facts.told, facts.is_status_fresh, facts.ray)
        assert state_of(more)[0] is JobState.SUCCEEDED


R, J = RayState, JobState


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (Facts(ray=R.PENDING), J.QUEUED),
        (Facts(ray=R.RUNNING), J.RUNNING),
        (Facts(ray=R.FAILED), J.FAILED),
        (Facts(ray=R.STOPPED), J.CANCELLED),
        (Facts(1, 4, is_driven=True, told=J.RUNNING, is_status_fresh=True, ray=R.RUNNING), J.RUNNING),
        # The entrypoint died; the driver is detached and works on.
        (Facts(1, 4, is_driven=True, told=J.RUNNING, is_status_fresh=True, ray=R.FAILED), J.RUNNING),
        # Between two lives of a driver the lease is there and no news comes.
        (Facts(1, 4, is_driven=True, told=J.RUNNING, ray=R.RUNNING), J.RUNNING),
        # Stopped by force: the lease cannot be given back.
        (Facts(1, 4, is_driven=True, told=J.RUNNING, ray=R.STOPPED), J.CANCELLED),
        (Facts(4, 4, told=J.RUNNING, is_status_fresh=True, ray=R.RUNNING), J.RUNNING),
        (Facts(4, 4, told=J.SUCCEEDED, ray=R.RUNNING), J.SUCCEEDED),
        (Facts(4, 4, ray=R.FAILED), J.SUCCEEDED),
        (Facts(3, 4, told=J.FAILED, ray=R.RUNNING), J.FAILED),
        (Facts(3, 4, told=J.CANCELLED), J.CANCELLED),
        # The cluster is gone, and with it the driver.
        (Facts(3, 4, told=J.RUNNING), J.FAILED),
        (Facts(3, 4), J.FAILED),
        (Facts(4, 4), J.SUCCEEDED),
    ],
)
def test_what_it_comes_to(facts: Facts, state: JobState):
    assert state_of(facts)[0] is state
