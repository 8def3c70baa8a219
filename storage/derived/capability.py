"""Results of lm-evaluation-harness in the folder of a sweep: kept as soon as a task is done, and asked for no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...jobs.specs.spec import digest_of
from ..format.capability_record import CAPABILITY_VERSION, CapabilityRecord, StoredMetric, capability_path
from ..format.versioned import read_versioned
from ..locations.location import Location


def read_capability(
    location: Location, setting_folder: str, task: str, asked: Mapping[str, Any]
) -> CapabilityRecord | None:
    """Read the results of a task under a setting; None where it was not answered as it is asked now.

    Args:
        location: The folder of the sweep.
        setting_folder: Folder of the setting's run below ``settings``.
        task: Name of the task.
        asked: All that its numbers depend on, as JSON values.

    Raises:
        StoreError: The record is damaged, or of a newer version.
    """
    path = capability_path(setting_folder, task, digest_of(dict(asked)))
    return read_versioned(location, path, CapabilityRecord, CAPABILITY_VERSION, "the results have")


def write_capability(
    location: Location,
    setting_folder: str,
    task: str,
    asked: Mapping[str, Any],
    num_documents: int,
    metrics: tuple[StoredMetric, ...],
) -> CapabilityRecord:
    """Keep the results of a task under a setting.

    Args:
        location: The folder of the sweep.
        setting_folder: Folder of the setting's run below ``settings``.
        task: Name of the task.
        asked: All that its numbers depend on, as JSON values.
        num_documents: Number of documents that were asked.
        metrics: Its metrics.
    """
    record = CapabilityRecord.sealed(
        version=CAPABILITY_VERSION, task=task, asked=dict(asked), num_documents=num_documents, metrics=metrics
    )
    location.write(capability_path(setting_folder, task, digest_of(dict(asked))), record.to_bytes())
    return record
