"""The tables of docs/scale.md are those that plans give."""

from __future__ import annotations

from pathlib import Path

import pytest

import scale_tables

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


@pytest.mark.parametrize("make", [scale_tables.choices_table, scale_tables.models_table])
def test_the_tables_of_the_page_are_made_from_plans(make):
    assert make() in PAGE.read_text(), "print them with: python tests/support/scale_tables.py"
