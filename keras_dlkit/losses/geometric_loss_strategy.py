"""The geometric mean of the losses (Chennupati et al., 2019)."""

from keras import ops

from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.losses.task_weighting import TaskWeighting

SMALLEST = 1e-8


CHENNUPATI = Paper(
    "MultiNet++: Multi-Stream Feature Aggregation and Geometric "
    "Loss Strategy for Multi-Task Learning",
    "Sumanth Chennupati and Ganesh Sistu and Senthil Yogamani and "
    "Samir A. Rawashdeh",
    2019,
    "Conference on Computer Vision and Pattern Recognition Workshops",
    arxiv="1904.08492",
)


@cites(CHENNUPATI)
@export
class GeometricLossStrategy(TaskWeighting):
    r"""Minimises the geometric mean of the losses.

    $$\sqrt[K]{\textstyle\prod_k L_k} = \sum_k w_k L_k, \qquad
      w_k = \frac{1}{K L_k} \sqrt[K]{\textstyle\prod_j L_j}$$

    A loss counts by its relative change alone, whatever its unit. Nothing is
    learned and nothing is set. It does not fit losses that reach zero: the
    others would then not be trained.

    Args:
        tasks: As in `TaskWeighting`.
        name: String. The name of the layer.

    Losses below `1e-8` are taken as that; `fit` warns once of negative ones.

    State: layer weights, the last weights.
    Runs: in `compute_loss`, once a pass, in training.
    Cost: a few operations on `tasks` numbers.

    Example:

    ```python
    import keras_dlkit as dlkit

    weighting = dlkit.losses.GeometricLossStrategy()
    ```

    References:
        - [Chennupati et al., 2019](https://arxiv.org/abs/1904.08492)
    """

    needs_positive = True

    def weigh(self, losses):
        logs = ops.log(ops.maximum(losses, SMALLEST))
        return ops.exp(ops.mean(logs) - logs) / len(self.tasks)
