"""The base of penalties on weights that have a state of their own."""

from typing import Any

import keras


class WeightPenalty(keras.layers.Layer):
    """Base class of parts that add to the loss what they make of the weights.

    A `keras.Regularizer` has no place for a state: a random seed in one is
    drawn from once, when the step is compiled, and never again. A penalty is a
    layer that `keras_dlkit.attach` owns: its seeds and weights are saved and
    restored, and both gradients of `SAM` see the same draw.

    A subclass says with `penalty` what is added.

    Args:
        name: String. The name of the layer.

    State: layer weights, those that a subclass adds.
    Runs: in the forward pass of `keras_dlkit.attach`, in training only.
    Cost: that of `penalty`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    @keras.saving.register_keras_serializable()
    class Shrink(dlkit.regularizers.WeightPenalty):
        def penalty(self, model):
            return 1e-3 * sum(
                keras.ops.sum(keras.ops.abs(w)) for w in model.trainable_weights
            )

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = dlkit.attach(net, Shrink())
    ```
    """

    follows_epochs = False

    def __init__(self, *, name: str | None = None):
        super().__init__(dtype="float32", autocast=False, name=name)
        self.built = True

    def check_model(self, model: keras.Model) -> None:
        """Raises, in `attach` and `compile`, for a model it is not for."""

    def penalty(self, model: keras.Model) -> Any:
        """What is added to the loss, a scalar.

        Args:
            model: `keras.Model`, the user's.
        """
        raise NotImplementedError(f"{type(self).__name__} must have `penalty`")

    def add_to_losses(self, model):
        self.add_loss(self.penalty(model))

    def get_config(self):
        return {"name": self.name}
