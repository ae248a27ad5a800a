"""FAMO: fast adaptive multitask optimization (Liu et al., 2023)."""

from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.losses.task_weighting import TaskWeighting

SMALLEST = 1e-8
BETAS = 0.9, 0.999


LIU_B = Paper(
    "FAMO: Fast Adaptive Multitask Optimization",
    "Bo Liu and Yihao Feng and Peter Stone and Qiang Liu",
    2023,
    "Advances in Neural Information Processing Systems",
    arxiv="2306.03792",
)


@cites(LIU_B)
@export
class FAMO(TaskWeighting):
    r"""Lets the losses fall at one rate, relative to their size.

    With logits \(\xi\), \(z = \operatorname{softmax}(\xi)\) and the losses
    above their lower bounds, \(D_k = L_k - b_k\),

    $$w_k = \frac{z_k / D_k}{\sum_j z_j / D_j}$$

    is the gradient of \(\sum_k z_k \log D_k\), scaled to sum to 1. After each
    update the losses of the same batch are looked at again, and \(\xi\) takes
    a step of Adam along \(-\nabla_\xi \sum_k z_k \delta_k\) with
    \(\delta_k = \log D_k - \log D'_k\), how far each task fell: the ones that
    fell least get more. It does what gradient manipulation does, without a
    gradient a task.

    Args:
        tasks: As in `TaskWeighting`.
        learning_rate: Float, at least 0. Of the logits. Defaults to `0.025`.
        decay: Float, at least 0. The decay of the logits, added to their
            gradient. Defaults to `0.01`, as in the authors' code.
        lower_bounds: `None` (zero), or a dict from each task to the least its
            loss can be.
        name: String. The name of the layer.

    State: layer weights, the logits and their moments; not trainable.
    Runs: in `compute_loss`, once a pass, in training, and after the update.
    Cost: one more forward pass a step; measured in `benchmarks/README.md`.

    Raises:
        TypeError, ValueError: At construction, for numbers out of range; in
            `compile`, with an optimizer that cuts the batch, or that passes it
            at another point than the weights (`MomentumSAM`).

    A loss at its bound is taken as `1e-8` above it; `fit` warns once of
    losses below their bounds. After a step whose losses are not finite, or
    that changed no weight (as of gradients that are accumulated, or of a loss
    scale that was too large), nothing is learned.

    Example:

    ```python
    import keras_dlkit as dlkit

    weighting = dlkit.losses.FAMO()
    ```

    References:
        - [Liu et al., 2023](https://arxiv.org/abs/2306.03792)
    """

    needs_positive = True
    looks_again = True

    def __init__(
        self,
        tasks: list[str | int] | None = None,
        *,
        learning_rate: float = 0.025,
        decay: float = 0.01,
        lower_bounds: dict | None = None,
        name: str | None = None,
    ):
        super().__init__(tasks, name=name)
        self.learning_rate = _checks.check_number(
            "learning_rate", learning_rate, at_least=0
        )
        self.decay = _checks.check_number("decay", decay, at_least=0)
        self.lower_bounds = _checked_bounds(lower_bounds)

    def bind(self, keys, aliases):
        super().bind(keys, aliases)
        if self.lower_bounds and set(self.lower_bounds) != set(self.tasks):
            raise ValueError(
                "`lower_bounds` must have an entry for each of "
                f"{list(self.tasks)}. Received: {self.lower_bounds}"
            )

    def make_state(self):
        self.logits = self.add_state("logits")
        self.moments = [self.add_state("mean"), self.add_state("square")]
        self.steps = self.add_state("steps", shape=())
        self.last_logs = self.add_state("last_logs")

    def weigh(self, losses):
        logs = self._logs(losses)
        self.last_logs.assign(logs)
        return ops.softmax(self.logits - logs)

    def look_again(self, losses):
        logits = ops.convert_to_tensor(self.logits)
        fall = self.last_logs - self._logs(losses)
        z = ops.softmax(logits)
        gradient = z * (fall - ops.sum(z * fall)) + self.decay * logits
        state = [self.logits, *self.moments, self.steps]
        finite = ops.all(ops.isfinite(gradient))
        for variable, value in zip(state, self._adam(gradient)):
            old = ops.convert_to_tensor(variable)
            variable.assign(ops.where(finite, value, old))

    def _adam(self, gradient):
        """The logits, moments and steps after a step of Adam."""
        (b1, b2), (mean, square) = BETAS, self.moments
        steps = self.steps + 1.0
        mean = b1 * mean + (1.0 - b1) * gradient
        square = b2 * square + (1.0 - b2) * ops.square(gradient)
        step = mean / (1.0 - ops.power(b1, steps))
        step /= ops.sqrt(square / (1.0 - ops.power(b2, steps))) + 1e-8
        return self.logits - self.learning_rate * step, mean, square, steps

    def _logs(self, losses):
        bounds = ops.convert_to_tensor(self.lowest_losses(), "float32")
        return ops.log(ops.maximum(losses - bounds, SMALLEST))

    def lowest_losses(self):
        return [self.lower_bounds.get(task, 0.0) for task in self.tasks]

    def get_config(self):
        return {
            **super().get_config(),
            "learning_rate": self.learning_rate,
            "decay": self.decay,
            "lower_bounds": list(self.lower_bounds.items()),
        }


def _checked_bounds(bounds):
    try:
        bounds = dict(bounds or {})  # pairs, in a config
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`lower_bounds` must be a dict from each task to a number. "
            f"Received: lower_bounds={bounds!r} of type {type(bounds)}"
        ) from error
    for bound in bounds.values():
        _checks.check_number("lower_bounds", bound)
    return bounds
