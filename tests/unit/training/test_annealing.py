"""The schedules against the paper's own numbers."""

from __future__ import annotations

import numpy as np
import pytest

from training.annealing import (
    converged,
    epochs_left,
    epochs_to_floor,
    epsilons,
    halving,
    learning_rate,
    scheduled_epoch,
)
from training.config import TrainingConfig


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 1), (99, 1), (100, 0.5), (1300, 2**-13), (1399, 2**-13), (1400, 1e-4)]
)
def test_std_annealing_of_the_paper(epoch, expected):
    assert halving(epoch, 1.0, 0.5, 100, 1e-4) == pytest.approx(expected)


def test_learning_rate_of_the_paper():
    assert [halving(epoch, 1e-3, 0.5, 300) for epoch in (0, 299, 300, 600)] == [1e-3, 1e-3, 5e-4, 2.5e-4]


@pytest.mark.parametrize("initial", [1.0, 0.5, 0.37])
@pytest.mark.parametrize("floor", [1e-4, 0.0625, 0.06, 1.0])
def test_epochs_to_floor_is_the_first_epoch_at_the_floor(initial, floor):
    epochs = epochs_to_floor(initial, 0.5, 7, floor)
    assert halving(epochs, initial, 0.5, 7, floor) == max(floor, initial * 0.5 ** (epochs // 7))
    assert halving(epochs, initial, 0.5, 7, floor) == pytest.approx(floor) or initial <= floor
    if epochs:
        assert halving(epochs - 1, initial, 0.5, 7, floor) > floor * (1 + 1e-9)


def test_a_schedule_that_never_gets_there_is_refused():
    with pytest.raises(ValueError, match="never reaches"):
        epochs_to_floor(1.0, 1.0, 10, 0.1)


def test_paper_defaults_run_until_a_stage_at_the_floor():
    assert TrainingConfig().total_epochs == 1500
    assert epsilons(TrainingConfig(), 1499, 1.0) == (1e-4, 1e-4)


def test_epsilon_x_keeps_its_own_scale():
    assert epsilons(TrainingConfig(epsilon_every=10), 10, 0.3) == pytest.approx((0.15, 0.5))


def stages(bounds, tolerance=0.05, every=10, **changes) -> list[int]:
    """Epochs at which a stage begins, replayed from the history as a run goes through it."""
    config = TrainingConfig(stage_tolerance=tolerance, epsilon_every=every, **changes)
    scheduled = [scheduled_epoch(config, bounds[:done]) for done in range(len(bounds) + 1)]
    return [epoch for epoch, place in enumerate(scheduled) if place % every == 0]


def rise(epochs: int, gain: float = 100.0, pace: float = 2.0) -> np.ndarray:
    """A bound that comes within exp(-epochs / pace) of its limit, 0."""
    return -gain * np.exp(-np.arange(epochs) / pace)


def test_stages_have_one_length_without_a_tolerance():
    assert stages([0.0] * 30, tolerance=0.0) == [0, 10, 20, 30]
    config = TrainingConfig(epochs=7)
    assert [epochs_left(config, [0.0] * done) for done in range(8)] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_a_steady_rise_lasts_the_longest_a_stage_may():
    assert stages(np.arange(30.0)) == [0, 10, 20, 30]


def test_a_rise_that_levels_off_ends_its_stage_there():
    """By hand, window 3: of 100 exp(-t/2), medians at epochs t - 1 and t - 4, until t = 10."""
    for t, ends in ((8, False), (9, False), (10, True)):
        latest = 100 * (np.exp(-(t - 4) / 2) - np.exp(-(t - 1) / 2))
        so_far = 100 * (np.exp(-1 / 2) - np.exp(-(t - 1) / 2))
        assert (latest <= 0.1 * so_far) == ends
        assert converged(rise(t + 1), 0.1, 3) == ends


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shift", [-1e5, 0.0, 1e3])
def test_neither_the_unit_nor_the_zero_of_the_bound_matters(scale, shift):
    bounds = np.concatenate([rise(9), 50 + rise(20), 80 + rise(20, pace=4)])
    expected = stages(bounds, tolerance=0.1)
    assert 3 < len(expected) < len(bounds) / 5
    assert stages(scale * bounds + shift, tolerance=0.1) == expected


def test_a_plateau_a_fall_and_pure_noise_end_a_stage_soon():
    assert stages([3.0] * 12) == [0, 6, 12]
    assert stages(-np.arange(12.0)) == [0, 6, 12]
    lengths = []
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=40)
        lengths += np.diff(stages(noise, every=30)).tolist()
    assert np.median(lengths) <= 8
    assert np.quantile(lengths, 0.9) <= 12


def test_noise_does_not_end_a_rise_well_above_it():
    early = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(size=10)
        early += stages(5 * np.arange(10.0) + noise)[1:] != [10]
    assert early == 0


def test_one_epoch_gone_wrong_neither_ends_nor_prolongs_a_stage():
    bounds = 10 * np.arange(10.0)
    for epoch in range(1, 10):
        dented = bounds.copy()
        dented[epoch] -= 1000
        assert stages(dented) == [0, 10]
    flat = np.array([0.0, 50, 80, 80, 80, 80, 80, 80])
    assert stages(flat)[1] == 7
    flat[6] += 1000
    assert stages(flat)[1] == 7


def test_short_stages_are_too_short_to_judge():
    assert stages([0.0] * 9, every=3) == [0, 3, 6, 9]


def test_longer_stages_are_judged_by_more_epochs():
    """100 epochs a stage as in the paper: a slow rise under the noise of single epochs still goes on."""
    assert stages([0.0] * 40, every=100) == [0, 20, 40]
    lasting = 0
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(size=60)
        lasting += len(stages(0.5 * np.arange(60.0) + noise, every=100)) == 1
    assert lasting == 50


def test_what_was_decided_stays_decided():
    """Later bounds change no earlier stage: so a run killed, or rolled back, anywhere decides the same."""
    bounds = np.random.default_rng(0).normal(size=80).cumsum()
    whole = stages(bounds)
    for done in range(80):
        assert stages(bounds[:done]) == [epoch for epoch in whole if epoch <= done]


def test_all_schedules_go_by_the_scheduled_epoch():
    config = TrainingConfig(
        epsilon_every=10, learning_rate_every=10, stage_tolerance=0.05, epsilon_floor=0.25, learning_rate=1e-3
    )
    place = scheduled_epoch(config, [0.0] * 6)
    assert place == 10
    assert epsilons(config, place, 0.3) == pytest.approx((0.15, 0.5))
    assert learning_rate(config, place) == pytest.approx(5e-4)


def test_a_run_ends_with_the_stage_at_the_floor_or_its_most_epochs():
    values = {"epsilon_every": 10, "epsilon_floor": 0.25, "stage_tolerance": 0.05}
    config = TrainingConfig(**values)
    assert config.total_epochs == 30
    assert [epochs_left(config, [0.0] * done) for done in (0, 5, 6, 12, 17, 18)] == [30, 25, 20, 10, 5, 0]
    assert [epochs_left(config, np.arange(float(done))) for done in (10, 29, 30)] == [20, 1, 0]
    capped = TrainingConfig(**values, epochs=8)
    assert [epochs_left(capped, [0.0] * done) for done in (0, 6, 8)] == [8, 2, 0]
    longer = TrainingConfig(**values, epochs=100)
    assert [epochs_left(longer, [0.0] * done) for done in (0, 6, 18)] == [30, 20, 0]
    endless = TrainingConfig(**values | {"epsilon_factor": 1.0}, epochs=20)
    assert [epochs_left(endless, [0.0] * done) for done in (0, 6, 12, 20)] == [20, 14, 8, 0]


def test_the_longest_run_of_the_paper_is_as_long_as_its_schedule():
    config = TrainingConfig(stage_tolerance=0.05)
    assert epochs_left(config, []) == 1500
    assert epochs_left(config, [float(epoch) for epoch in range(1499)]) == 1
