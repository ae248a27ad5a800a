"""Learned task weights from uncertainty (Kendall, Gal and Cipolla, 2018)."""

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit.losses.task_weighting import TaskWeighting
from keras_dlkit.ops.uncertainty_weighted import FACTORS
from keras_dlkit.ops.uncertainty_weighted import KENDALL
from keras_dlkit.ops.uncertainty_weighted import LIEBEL
from keras_dlkit.ops.uncertainty_weighted import PENALTIES
from keras_dlkit.ops.uncertainty_weighted import uncertainty_penalty
from keras_dlkit.ops.uncertainty_weighted import uncertainty_weights


@cites(KENDALL)
@cites(LIEBEL, when=lambda weighting: weighting.formula == "liebel")
@export
class UncertaintyWeighting(TaskWeighting):
    r"""Learns how noisy each task is, and weighs it by that.

    With a learned log-variance \(s_k = \log \sigma_k^2\) a task, what is
    minimised is

    $$\sum_k c_k \, e^{-s_k} L_k + \frac{s_k}{2}, \qquad
      c_k = \tfrac{1}{2} \text{ in regression}, \;
      1 \text{ in classification}$$

    so that \(\sigma_k\) comes to be the standard deviation of what is left of
    a regression with the mean squared error. Use it where losses have units
    of their own and a search for weights does not fit. Fixed weights that were
    searched for are as good or better (Kurin et al., 2022); what this saves is
    the search.

    The kind of a task is what its loss is, not what its targets are: every
    task as `"regression"` is the form of LibMTL, which halves the weights
    of classifications. The training loss falls below zero once
    \(2 c_k L_k < 1/e\), which is right; watch `val_loss`, the sum of Keras.

    Args:
        tasks: Dict from the name or index of an output to `"regression"` or
            `"classification"`.
        formula: `"kendall"`, or `"liebel"`: \(\log(1 + e^{s_k})\) in the
            place of \(s_k / 2\), never negative.
        initial_log_variance: Float within `bounds`, or a dict with one an
            output. Where \(s_k\) starts.
        bounds: Pair of floats `(low, high)` between -80 and 80. After each step
            \(s_k\) is put back between them: a task whose loss goes to zero
            would take it, and its weight, to infinity. What an optimizer with
            `use_ema` puts in its place may be beyond them by a step: it
            averages before.
        name: String. The name of the layer.

    `.log_variances` has the `keras.Variable` of each output. They are float32
    under any policy, trained by the optimizer of `compile` at its learning
    rate, never decayed, and not moved by `SAM` but where its `variables` ask
    for it.

    State: layer weights, one a task, trainable.
    Runs: in `compute_loss`, once a pass, in training.
    Cost: a few operations on `tasks` numbers.

    Raises:
        TypeError, ValueError: At construction, for kinds, formulae and bounds
            that are none; in `compile`, where `tasks` are not the outputs that
            have a loss.

    A loss below zero has no best variance: \(s_k\) goes to its lower bound.
    `fit` warns of it once.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    x = keras.Input((4,))
    outputs = {
        "depth": keras.layers.Dense(1, name="depth")(x),
        "label": keras.layers.Dense(3, name="label")(x),
    }
    weighting = dlkit.losses.UncertaintyWeighting(
        {"depth": "regression", "label": "classification"}
    )
    model = dlkit.attach(keras.Model(x, outputs), weighting)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss={"depth": "mse", "label": crossentropy})
    ```

    References:
        - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115)
        - [Liebel and Koerner, 2018](https://arxiv.org/abs/1805.06334)
        - [Kurin et al., 2022](https://arxiv.org/abs/2201.04122), fixed
          weights
    """

    is_linear = True
    needs_positive = True

    def __init__(
        self,
        tasks: dict,
        *,
        formula: str = "kendall",
        initial_log_variance: float | dict = 0.0,
        bounds: tuple[float, float] = (-6.0, 6.0),
        name: str | None = None,
    ):
        if not isinstance(tasks, dict):
            raise TypeError(
                "`tasks` must be a dict from an output to its kind, as in "
                "`{'depth': 'regression', 'label': 'classification'}`. "
                f"Received: tasks={tasks!r} of type {type(tasks)}"
            )
        for task, kind in tasks.items():
            _checks.check_one_of(f"tasks[{task!r}]", kind, FACTORS)
        self.kinds = list(tasks.values())
        self.formula = formula
        _checks.check_one_of("formula", formula, PENALTIES)
        self.bounds = _check_bounds(bounds)
        self.initial_log_variance = initial_log_variance
        super().__init__(list(tasks), name=name)

    def make_state(self):
        self.log_variances = {
            task: self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(self._initial(task)),
                constraint=_Between(*self.bounds),
                name=f"log_variance_{task}".replace("/", "_"),
            )
            for task in self.tasks
        }

    def _initial(self, task):
        value = self.initial_log_variance
        if isinstance(value, dict):
            if set(value) != set(self.tasks):
                raise ValueError(
                    "`initial_log_variance` must have an entry for each of "
                    f"{list(self.tasks)}. Received: {value}"
                )
            value = value[task]
        value = _checks.check_number("initial_log_variance", value)
        low, high = self.bounds
        if not low <= value <= high:
            raise ValueError(
                "`initial_log_variance` must be within `bounds`. Received: "
                f"initial_log_variance={value}, bounds={self.bounds}. Widen "
                "`bounds`, or scale the targets of the task."
            )
        return value

    def weigh(self, losses):
        return uncertainty_weights(self._values(), self.kinds)

    def penalty(self):
        return uncertainty_penalty(self._values(), self.formula)

    def _values(self):
        return [self.log_variances[task] for task in self.tasks]

    def get_config(self):
        return {
            **super().get_config(),
            # Pairs: a dict of JSON would make names of the indices.
            "tasks": list(zip(self.tasks, self.kinds)),
            "formula": self.formula,
            "initial_log_variance": [
                self._initial(task) for task in self.tasks
            ],
            "bounds": self.bounds,
        }

    @classmethod
    def from_config(cls, config):
        tasks = dict(map(tuple, config["tasks"]))
        initial = dict(zip(tasks, config["initial_log_variance"]))
        return cls(
            **{**config, "tasks": tasks, "initial_log_variance": initial}
        )


class _Between(keras.constraints.Constraint):
    """Puts a weight back between two bounds, after each update."""

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, w):
        return ops.clip(w, self.low, self.high)


def _check_bounds(bounds):
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(
            "`bounds` must be `(low, high)`, of log-variances. "
            f"Received: bounds={bounds!r}"
        )
    # Beyond these the weights overflow in float32.
    low, high = (
        _checks.check_number("bounds", bound, at_least=-80, at_most=80)
        for bound in bounds
    )
    if low >= high:
        raise ValueError(
            "`bounds` must be `(low, high)` with low < high. "
            f"Received: bounds={bounds!r}"
        )
    return low, high
