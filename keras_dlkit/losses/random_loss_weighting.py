"""Random loss weighting (Lin et al., 2022)."""

import keras
from keras import ops

from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.losses.task_weighting import TaskWeighting

LIN_B = Paper(
    "Reasonable Effectiveness of Random Weighting: A Litmus Test "
    "for Multi-Task Learning",
    "Baijiong Lin and Feiyang Ye and Yu Zhang and Ivor W. Tsang",
    2022,
    journal="Transactions on Machine Learning Research",
    arxiv="2111.10603",
)


@cites(LIN_B)
@export
class RandomLossWeighting(TaskWeighting):
    r"""Draws the weights of each step at random.

    $$w = \operatorname{softmax}(z), \qquad z_k \sim \mathcal{N}(0, 1)$$

    The weights sum to 1, so that a learning rate for the sum of the losses is
    too low by the number of tasks. A control that any learned weighting should
    beat. Both gradients of `SAM` see the same draw.

    Args:
        tasks: As in `TaskWeighting`.
        seed: Integer, or `None` for a random one.
        name: String. The name of the layer.

    State: layer weights, the random seed; not trainable.
    Runs: in `compute_loss`, once a pass, in training.
    Cost: a draw of `tasks` numbers.

    Example:

    ```python
    import keras_dlkit as dlkit

    weighting = dlkit.losses.RandomLossWeighting(seed=1)
    ```

    References:
        - [Lin et al., 2022](https://arxiv.org/abs/2111.10603)
    """

    is_linear = True

    def __init__(
        self,
        tasks: list[str | int] | None = None,
        *,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(tasks, name=name)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def weigh(self, losses):
        shape = (len(self.tasks),)
        return ops.softmax(keras.random.normal(shape, seed=self.seed_generator))

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}
