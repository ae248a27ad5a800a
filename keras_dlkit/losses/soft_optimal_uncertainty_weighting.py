"""Soft optimal uncertainty weighting, UW-SO (Kirchdorfer et al., 2024)."""

from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.losses.geometric_loss_strategy import SMALLEST
from keras_dlkit.losses.task_weighting import TaskWeighting

KIRCHDORFER = Paper(
    "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning",
    "Lukas Kirchdorfer and Cathrin Elich and Simon Kutsche and "
    r"Heiner Stuckenschmidt and Lukas Schott and Jan M. K{\"o}hler",
    2024,
    "German Conference on Pattern Recognition",
    arxiv="2408.07985",
)


@cites(KIRCHDORFER)
@export
class SoftOptimalUncertaintyWeighting(TaskWeighting):
    r"""Weighs by the inverse losses, through a softmax (UW-SO).

    $$w = \operatorname{softmax}\left(\frac{1}{T L}\right)$$

    The inverse of its loss is the best weight of a task in the sense of
    `UncertaintyWeighting`, at once instead of learned; the softmax keeps a
    task with a small loss from taking all. The weights sum to 1.

    Args:
        tasks: As in `TaskWeighting`.
        temperature: Float above 0. \(T\). It depends on the size of the
            losses and has to be tuned, which is one search where weights
            would be one a task. Defaults to `1.0`.
        name: String. The name of the layer.

    Losses below `1e-8` are taken as that; `fit` warns once of negative ones.

    State: layer weights, the last weights.
    Runs: in `compute_loss`, once a pass, in training.
    Cost: a few operations on `tasks` numbers.

    Raises:
        TypeError, ValueError: At construction, for a temperature that is none.

    Example:

    ```python
    import keras_dlkit as dlkit

    weighting = dlkit.losses.SoftOptimalUncertaintyWeighting(temperature=5.0)
    ```

    References:
        - [Kirchdorfer et al., 2024](https://arxiv.org/abs/2408.07985)
    """

    needs_positive = True

    def __init__(
        self,
        tasks: list[str | int] | None = None,
        *,
        temperature: float = 1.0,
        name: str | None = None,
    ):
        super().__init__(tasks, name=name)
        self.temperature = check_temperature(temperature)

    def weigh(self, losses):
        inverse = 1.0 / ops.maximum(losses, SMALLEST)
        return ops.softmax(inverse / self.temperature)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


def check_temperature(temperature):
    temperature = _checks.check_number("temperature", temperature, at_least=0)
    if temperature == 0:
        raise ValueError(
            "`temperature` must be above 0; the weights are a softmax of what "
            f"is divided by it. Received: temperature={temperature}"
        )
    return temperature
