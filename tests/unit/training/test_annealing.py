"""The schedules against the paper's own numbers."""

from __future__ import annotations

import pytest

from training.annealing import epochs_to_floor, halving
from training.config import TrainingConfig
from training.loop import epsilons


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
