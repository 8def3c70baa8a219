"""The record of how one task of lm-evaluation-harness was answered under one setting, kept in the folder of a sweep.

capability/<setting>/<task>-<key>.json     the metrics of one task; the key is of all that the numbers depend on
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from .sealed import Record, VersionedRecord

CAPABILITY = "capability"
CAPABILITY_VERSION = 1
"""Increased when an older reader would misread a new record."""

_KEY_LETTERS = 16


class StoredMetric(Record):
    """One metric of a task.

    Attributes:
        name: Name with its filter.
        value: The value.
        stderr: Its standard error; None for none.
        higher_is_better: Whether more of it is better; None where the task does not say.
        documents: Value of each document; empty where they are not known.
    """

    name: str
    value: float
    stderr: float | None = None
    higher_is_better: bool | None = None
    documents: dict[str, float] = Field(default_factory=dict)


class CapabilityRecord(VersionedRecord):
    """The results of one task under one setting.

    Attributes:
        task: Name of the task or group.
        asked: All that the numbers depend on: the edits and the model, the harness and its options, the task's files.
        num_documents: Number of documents that were asked.
        metrics: The metrics, in the order of the harness.
    """

    task: str
    asked: dict[str, Any]
    num_documents: int
    metrics: tuple[StoredMetric, ...]


def capability_path(setting_folder: str, task: str, key: str) -> str:
    """Path of the record of a task, relative to the folder of the sweep.

    Args:
        setting_folder: Folder of the setting's run below ``settings``.
        task: Name of the task.
        key: Digest of what was asked.
    """
    name = re.sub(r"[^A-Za-z0-9.+_-]+", "-", task)
    return f"{CAPABILITY}/{setting_folder}/{name}-{key[:_KEY_LETTERS]}.json"
