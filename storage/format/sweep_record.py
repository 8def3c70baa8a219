"""The record of a sweep, ``sweep.json``, and the paths of its objects, relative to the sweep's URL.

sweep.json                                   the settings, each with the folder of its run
settings/<setting>/                          the run of one setting: a store of its own
verdicts/<rubric>/<judge>/judge.json         who judged by that rubric
verdicts/<rubric>/<judge>/<setting>/<unit>.parquet   labels of the replies of one unit, with what the judge said
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .sealed import Record, VersionedRecord

SWEEP_RECORD = "sweep.json"
SWEEP_VERSION = 1
"""Increased when an older reader would misread a new sweep."""


class StoredSetting(Record):
    """One setting of a sweep.

    Attributes:
        name: How it is called in tables.
        folder: Folder of its run below ``settings``.
        edits: Digest of its edits, as in the record of its run; empty for the model as it is.
        interventions: The entries that the user asked for.
    """

    name: str
    folder: str
    edits: str
    interventions: tuple[dict[str, Any], ...] = ()


class SweepRecord(VersionedRecord):
    """The record of a sweep. Every setting that was ever begun stays in it.

    Attributes:
        settings: The settings.
    """

    settings: tuple[StoredSetting, ...]

    @classmethod
    def of(cls, settings: Iterable[StoredSetting], earlier: SweepRecord | None) -> SweepRecord:
        """Make the record of a sweep's settings; those that it had before and are not asked for now follow.

        Args:
            settings: The settings that are asked for.
            earlier: The record that the sweep has; None for a new one.
        """
        asked = tuple(settings)
        folders = {setting.folder for setting in asked}
        others = () if earlier is None else tuple(one for one in earlier.settings if one.folder not in folders)
        return cls.sealed(version=SWEEP_VERSION, settings=asked + others)
