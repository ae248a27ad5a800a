"""All tasks alike: what the other weightings are compared with."""

from keras import ops

from keras_dlkit._export import export
from keras_dlkit.losses.task_weighting import TaskWeighting


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
