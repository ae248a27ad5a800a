"""PCGrad, projecting conflicting gradients (Yu et al., 2020)."""

import keras
from keras import ops

from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.losses.task_weighting import TaskWeighting

YU = Paper(
    "Gradient Surgery for Multi-Task Learning",
    "Tianhe Yu and Saurabh Kumar and Abhishek Gupta and Sergey "
    "Levine and Karol Hausman and Chelsea Finn",
    2020,
    "Advances in Neural Information Processing Systems",
    arxiv="2001.06782",
)


@cites(YU)
@export
class PCGrad(TaskWeighting):
    r"""Takes out of the gradient of a task what goes against another.

    Each task has a gradient \(g_i\). For the other tasks \(j\), in random
    order,

    $$g_i \leftarrow g_i - \frac{\min(\langle g_i, g_j^0 \rangle, 0)}
      {\lVert g_j^0 \rVert^2} \, g_j^0$$

    with \(g_j^0\) as it was, and the sum of what is left is applied. All
    weights are one vector; of a weight that one task alone has, nothing
    conflicts. The sum of projected gradients is a weighted sum of those of the
    tasks, and what is computed, and logged, are these weights, from inner
    products alone.

    Args:
        tasks: As in `TaskWeighting`.
        seed: Integer, or `None` for a random one. Of the orders.
        name: String. The name of the layer.

    What regularizers and `add_loss` give is added as it is. With `SAM` both
    gradients of a step are made so.

    State: layer weights, the random seed; not trainable.
    Runs: in the train step of `keras_dlkit.attach`.
    Cost: a backward pass and a copy of the gradients a task, with one forward
        pass for all; measured in `benchmarks/README.md`.

    Example:

    ```python
    import keras_dlkit as dlkit

    weighting = dlkit.losses.PCGrad(seed=1)
    ```

    References:
        - [Yu et al., 2020](https://arxiv.org/abs/2001.06782)
    """

    needs_gradients = True

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

    def weigh_gradients(self, products):
        count = len(self.tasks)
        squares = ops.diagonal(products)
        safe = ops.where(squares > 0, squares, 1.0)
        weights = ops.zeros((count,), "float32")
        for task in range(count):
            # What is left of a gradient, as a sum of all of them.
            kept = ops.one_hot(task, count, dtype="float32")
            order = keras.random.shuffle(
                ops.arange(count), seed=self.seed_generator
            )
            for turn in range(count):
                other = ops.one_hot(order[turn], count, dtype="float32")
                product = ops.sum(kept * ops.matmul(products, other))
                conflict = ops.minimum(product, 0.0) / ops.sum(safe * other)
                conflict = ops.where(order[turn] == task, 0.0, conflict)
                kept = kept - conflict * other
            weights = weights + kept
        return weights

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}
