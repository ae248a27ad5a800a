"""All tasks alike: what the other weightings are compared with."""

from keras import ops

from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.losses.task_weighting import TaskWeighting

KURIN = Paper(
    "In Defense of the Unitary Scalarization for Deep Multi-Task Learning",
    "Vitaly Kurin and Alessandro De Palma and Ilya Kostrikov and "
    "Shimon Whiteson and M. Pawan Kumar",
    2022,
    "Advances in Neural Information Processing Systems",
    arxiv="2201.04122",
)


@cites(KURIN)
@export
class EqualWeighting(TaskWeighting):
    r"""Weighs all tasks by one: \(\sum_k L_k\), as Keras does.

    The control of an experiment with the other weightings, for what they take
    the place of; `compile(loss_weights=...)` are the fixed weights to tune.

    Args:
        tasks: As in `TaskWeighting`.
        name: String. The name of the layer.

    State: layer weights, the last weights.
    Runs: in `compute_loss`, once a pass, in training.
    Cost: none.

    Example:

    ```python
    import keras_dlkit as dlkit

    weighting = dlkit.losses.EqualWeighting()
    ```

    References:
        - [Kurin et al., 2022](https://arxiv.org/abs/2201.04122), on how well
          it does
    """

    is_linear = True

    def weigh(self, losses):
        return ops.ones_like(losses)
