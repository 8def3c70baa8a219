"""Projections of conversations on an axis, turn by turn: scores, table, picture, page."""
