"""What a reduction reads."""

from __future__ import annotations

import pytest
from persona_atlas.storage.query.reader import ActivationReader


@pytest.fixture
def units_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The units whose activations are read, each as often as it is."""
    read: list[str] = []
    of_unit = ActivationReader.of_unit

    def noting(self: ActivationReader, row_block: int, unit_id: str, *rest: object) -> object:
        read.append(unit_id)
        return of_unit(self, row_block, unit_id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ActivationReader, "of_unit", noting)
    return read
