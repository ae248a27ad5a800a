"""Dynamic weight average, DWA (Liu et al., 2019)."""

import numpy as np
from keras import ops

from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.losses.geometric_loss_strategy import SMALLEST
from keras_dlkit.losses.soft_optimal_uncertainty_weighting import (
    check_temperature,
)
from keras_dlkit.losses.task_weighting import TaskWeighting

LARGEST_RATIO = 10.0

LIU_S = Paper(
    "End-to-End Multi-Task Learning with Attention",
    "Shikun Liu and Edward Johns and Andrew J. Davison",
    2019,
    "Conference on Computer Vision and Pattern Recognition",
    arxiv="1803.10704",
)


@cites(LIU_S)
@export
class DynamicWeightAverage(TaskWeighting):
    r"""Weighs the tasks by how slowly their losses fell (DWA).

    With \(\bar L_k^{(t)}\) the mean loss of a task over epoch \(t\), and
    \(K\) tasks,

    $$w = K \operatorname{softmax}\left(\frac{r}{T}\right), \qquad
      r_k = \frac{\bar L_k^{(t - 1)}}{\bar L_k^{(t - 2)}}$$

    and 1 in the first two epochs. It does not even out the sizes of losses:
    two that fall alike are weighed alike.

    Args:
        tasks: As in `TaskWeighting`.
        temperature: Float above 0. \(T\); the larger, the more alike. Defaults
            to `2.0`, the paper's.
        name: String. The name of the layer.

    `fit` keeps count of the epochs; in a loop of your own call `set_epoch`.
    A step whose losses are not finite does not count. Mean losses below `1e-8`
    are taken as that, and ratios above 10 as 10, so that a loss that leaves
    zero does not take all weight; `fit` warns once of negative losses.

    State: layer weights, the mean losses of this epoch and the two before; not
        trainable.
    Runs: in `compute_loss`, once a pass, in training.
    Cost: a few operations on `tasks` numbers.

    Raises:
        TypeError, ValueError: At construction, for a temperature that is none.

    Example:

    ```python
    import keras_dlkit as dlkit

    weighting = dlkit.losses.DynamicWeightAverage()
    ```

    References:
        - [Liu et al., 2019](https://arxiv.org/abs/1803.10704)
    """

    needs_positive = True
    follows_epochs = True

    def __init__(
        self,
        tasks: list[str | int] | None = None,
        *,
        temperature: float = 2.0,
        name: str | None = None,
    ):
        super().__init__(tasks, name=name)
        self.temperature = check_temperature(temperature)

    def make_state(self):
        self.total = self.add_state("total")
        self.steps = self.add_state("steps", shape=())
        self.last_means = self.add_state("last_means", "ones")
        self.ratios = self.add_state("ratios", "ones")
        self.epochs = self.add_state("epochs", shape=())

    def weigh(self, losses):
        finite = ops.all(ops.isfinite(losses))
        self.total.assign(self.total + ops.where(finite, losses, 0.0))
        self.steps.assign(self.steps + ops.cast(finite, "float32"))
        scores = ops.convert_to_tensor(self.ratios) / self.temperature
        return len(self.tasks) * ops.softmax(scores)

    def set_epoch(self, epoch):
        steps = ops.convert_to_numpy(self.steps)
        if not steps:  # the epoch that is on
            return
        means = ops.convert_to_numpy(self.total) / steps
        means = np.maximum(means, SMALLEST)
        last = ops.convert_to_numpy(self.last_means)
        if ops.convert_to_numpy(self.epochs):
            self.ratios.assign(np.minimum(means, LARGEST_RATIO * last) / last)
        self.last_means.assign(means)
        self.epochs.assign(ops.convert_to_numpy(self.epochs) + 1)
        self.total.assign(0.0 * means)
        self.steps.assign(0.0)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}
