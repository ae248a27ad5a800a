"""The base of all ways to make one loss of those of several outputs."""

import keras


class TaskWeighting(keras.layers.Layer):
    r"""Base class of parts that weigh the losses of several outputs.

    A subclass says with `combine` what is minimised instead of the sum
    \(\sum_k w_k L_k\) of Keras. It may have weights, made in `__init__` with
    `add_weight`: trainable ones are trained along with the network.

    Give it to `keras_dlkit.attach`, and `compile` with a loss an output, as a
    dict or a list. The logged losses of the outputs are Keras's own, not
    weighted; `loss` is what was minimised in training and the plain weighted
    sum in evaluation, where it must stay comparable between epochs.

    Args:
        name: String. The name of the layer.

    State: layer weights, those that a subclass adds.
    Runs: in `compute_loss`, once a pass, in training.
    Cost: that of `combine`, on scalars.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    @keras.saving.register_keras_serializable()
    class GeometricMean(dlkit.losses.TaskWeighting):
        def combine(self, losses):
            logs = [keras.ops.log(loss) for loss in losses.values()]
            return keras.ops.exp(sum(logs) / len(logs))

    x = keras.Input((4,))
    outputs = {name: keras.layers.Dense(1, name=name)(x) for name in "ab"}
    model = dlkit.attach(keras.Model(x, outputs), GeometricMean())
    model.compile("sgd", loss={"a": "mse", "b": "mae"})
    ```

    References:
        - [Chennupati et al., 2019](https://arxiv.org/abs/1904.08492), the
          geometric loss strategy of the example.
    """

    def __init__(self, *, name: str | None = None):
        super().__init__(dtype="float32", autocast=False, name=name)
        self.built = True

    def combine(self, losses: dict):
        """What to minimise.

        Args:
            losses: Dict from the key of an output (its name in a dict, its
                index in a list) to its loss, a scalar, times its
                `loss_weights` where `compile` was given some.

        Returns:
            A scalar tensor.
        """
        raise NotImplementedError(f"{type(self).__name__} must have `combine`")

    def call(self, losses):
        return self.combine(losses)

    def get_config(self):
        return {"name": self.name}
