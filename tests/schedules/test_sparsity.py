"""Schedules against the formula, and what they refuse."""

import keras
import numpy as np
import pytest

import keras_dlkit as dlkit

Polynomial = dlkit.schedules.PolynomialSparsity
Constant = dlkit.schedules.ConstantSparsity


@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize("initial", [0.0, 0.25])
def test_polynomial_is_the_formula(power, initial):
    schedule = Polynomial(
        0.9, begin_step=10, end_step=50, initial_sparsity=initial, power=power
    )
    for t in range(10, 51):
        expected = 0.9 + (initial - 0.9) * (1 - (t - 10) / 40) ** power
        assert schedule(t) == pytest.approx(expected)
    assert schedule(9) == 0.0 and schedule(10) == pytest.approx(initial)
    assert schedule(50) == schedule(10**6) == 0.9


def test_constant():
    schedule = Constant(0.5, begin_step=3)
    assert [schedule(t) for t in range(5)] == [0, 0, 0, 0.5, 0.5]


@pytest.mark.parametrize(
    "schedule", [Constant(0.5), Polynomial(0.5, begin_step=1, end_step=2)]
)
def test_saved(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(schedule)
    assert copy.get_config() == schedule.get_config()
    assert "0.5" in repr(schedule)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Constant(1.0), "less than 1"),
        (lambda: Constant(0.5, begin_step=-1), "begin_step.*-1"),
        (lambda: Polynomial(1.5, begin_step=0, end_step=1), "final_sparsity"),
        (lambda: Polynomial(0.5, begin_step=5, end_step=5), "end_step.*6"),
        (
            lambda: Polynomial(
                0.5, begin_step=0, end_step=5, initial_sparsity=0.6
            ),
            "initial_sparsity.*at most 0.5",
        ),
        (lambda: Polynomial(0.5, begin_step=0, end_step=5, power=0), "power"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Pruning:
    """The interface of tensorflow-model-optimization's `PolynomialDecay`."""

    def __init__(self, final, begin_step, end_step, frequency):
        self.final_sparsity = final
        self.begin_step, self.end_step = begin_step, end_step
        self.frequency = frequency

    def __call__(self, step):
        turn = (step - self.begin_step) % self.frequency == 0
        p = (step - self.begin_step) / (self.end_step - self.begin_step)
        p = min(1.0, max(0.0, p))
        sparsity = np.float32(self.final_sparsity * (1 - (1 - p) ** 3))
        should = turn and self.begin_step <= step <= self.end_step
        return np.bool_(should), sparsity
