from math import inf

from serving.run_times import RunTimes


def test_a_size_that_was_never_seen_may_take_any_time():
    times = RunTimes()
    assert times.least(1) == inf
    times.add(4, 0.5)
    assert times.least(5) == inf


def test_a_smaller_run_takes_no_longer_than_the_next_larger_one_that_was_seen():
    times = RunTimes()
    times.add(256, 4.0)
    times.add(16, 0.5)
    assert [times.least(rows) for rows in (1, 9, 16, 17, 256, 257)] == [0.5, 0.5, 0.5, 4.0, 4.0, inf]


def test_one_run_that_was_held_up_changes_nothing_and_eight_do():
    times = RunTimes()
    times.add(3, 0.1)
    for _ in range(7):
        times.add(4, 9.0)
    assert times.least(3) == 0.1
    times.add(3, 8.0)
    assert times.least(4) == 8.0
    times.add(3, 0.2)
    assert times.least(4) == 0.2


def test_the_mean_counts_what_held_runs_up():
    times = RunTimes()
    assert times.mean(1) == inf
    for seconds in (1.0, 2.0, 6.0):
        times.add(4, seconds)
    assert times.mean(3) == 3.0
