"""The state of a job from every mix of evidence: the store before Ray, and never success without every unit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.scheduling.job_state import JobEvidence, JobState, RayState, state_of

EVIDENCE = st.builds(
    JobEvidence,
    done=st.integers(0, 4),
    planned=st.integers(0, 4),
    is_driven=st.booleans(),
    reported_state=st.none()
    | st.sampled_from([JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]),
    is_status_fresh=st.booleans(),
    ray=st.none() | st.sampled_from(list(RayState)),
)


@given(EVIDENCE)
@settings(max_examples=400)
def test_any_evidence_gives_one_state_with_a_reason(evidence: JobEvidence):
    state, reason = state_of(evidence)
    assert reason
    if state is JobState.SUCCEEDED:
        assert evidence.is_complete
    if evidence.is_complete:
        assert state in (JobState.SUCCEEDED, JobState.RUNNING)
    if state is JobState.QUEUED:
        assert not evidence.is_driven
        assert evidence.ray in (None, RayState.PENDING)
    if evidence.ray in (RayState.STOPPED, RayState.FAILED, RayState.SUCCEEDED) and not evidence.is_driven:
        assert state is not JobState.QUEUED


@given(EVIDENCE)
@settings(max_examples=400)
def test_a_running_driver_is_believed_over_ray(evidence: JobEvidence):
    state, _ = state_of(evidence)
    reports_running = evidence.reported_state is None or evidence.reported_state is JobState.RUNNING
    if evidence.is_driven and evidence.is_status_fresh and reports_running:
        assert state is JobState.RUNNING
    if state is JobState.RUNNING and evidence.ray is None:
        assert evidence.is_driven


@given(EVIDENCE)
@settings(max_examples=400)
def test_one_more_unit_never_turns_success_into_anything_else(evidence: JobEvidence):
    if state_of(evidence)[0] is JobState.SUCCEEDED:
        assert state_of(replace(evidence, done=evidence.done + 1))[0] is JobState.SUCCEEDED


R, J = RayState, JobState


@pytest.mark.parametrize(
    ("evidence", "state"),
    [
        (JobEvidence(ray=R.PENDING), J.QUEUED),
        (JobEvidence(ray=R.RUNNING), J.RUNNING),
        (JobEvidence(ray=R.FAILED), J.FAILED),
        (JobEvidence(ray=R.STOPPED), J.CANCELLED),
        (JobEvidence(1, 4, is_driven=True, reported_state=J.RUNNING, is_status_fresh=True, ray=R.RUNNING), J.RUNNING),
        # The entrypoint died; the driver is detached and goes on.
        (JobEvidence(1, 4, is_driven=True, reported_state=J.RUNNING, is_status_fresh=True, ray=R.FAILED), J.RUNNING),
        # While Ray restarts a driver its lease is still live and nothing updates its status.
        (JobEvidence(1, 4, is_driven=True, reported_state=J.RUNNING, ray=R.RUNNING), J.RUNNING),
        # Killed: nothing released the lease.
        (JobEvidence(1, 4, is_driven=True, reported_state=J.RUNNING, ray=R.STOPPED), J.CANCELLED),
        # The reduction.
        (JobEvidence(4, 4, is_driven=True, reported_state=J.RUNNING, is_status_fresh=True, ray=R.RUNNING), J.RUNNING),
        # Its lease was released: the process hangs as it ends, or the final status could not be written.
        (JobEvidence(3, 4, reported_state=J.RUNNING, is_status_fresh=True), J.FAILED),
        (JobEvidence(4, 4, reported_state=J.RUNNING, is_status_fresh=True, ray=R.RUNNING), J.SUCCEEDED),
        (JobEvidence(4, 4, reported_state=J.SUCCEEDED, ray=R.RUNNING), J.SUCCEEDED),
        (JobEvidence(4, 4, ray=R.FAILED), J.SUCCEEDED),
        (JobEvidence(3, 4, reported_state=J.FAILED, ray=R.RUNNING), J.FAILED),
        (JobEvidence(3, 4, reported_state=J.CANCELLED), J.CANCELLED),
        # The cluster is gone, and with it the driver.
        (JobEvidence(3, 4, reported_state=J.RUNNING), J.FAILED),
        (JobEvidence(3, 4), J.FAILED),
        (JobEvidence(4, 4), J.SUCCEEDED),
    ],
)
def test_the_state_of_typical_evidence(evidence: JobEvidence, state: JobState):
    assert state_of(evidence)[0] is state
