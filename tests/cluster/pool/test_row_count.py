"""The count of rollouts of a worker: told now and then, and none counted twice."""

from __future__ import annotations

from persona_atlas.cluster.pool.row_count import TELL_EVERY_S, RowCount


def test_a_count_is_told_every_few_seconds_however_many_rollouts_end():
    now = [0.0]
    count = RowCount(lambda: now[0])
    told = []
    for rows in range(1, 101):
        now[0] += TELL_EVERY_S / 20
        told.append(count.in_model(rows))
    assert [rows for rows in told if rows is not None] == [20, 40, 60, 80, 100]


def test_the_rollouts_of_a_unit_that_is_written_are_counted_until_it_is():
    now = [TELL_EVERY_S]
    count = RowCount(lambda: now[0])
    assert count.in_model(3) is None
    count.to_write(3)
    assert count.written(3) is None, "nobody was told of them"
    now[0] += TELL_EVERY_S
    assert count.in_model(5) == 5
    count.to_write(4)
    now[0] += TELL_EVERY_S
    assert count.in_model(2) == 6
    assert count.written(4) == 2


def test_rollouts_of_a_unit_that_failed_are_counted_no_longer():
    now = [TELL_EVERY_S]
    count = RowCount(lambda: now[0])
    now[0] += TELL_EVERY_S
    assert count.in_model(7) == 7
    count.to_write(4)
    assert count.failed() == 4
    assert count.written(4) == 0
