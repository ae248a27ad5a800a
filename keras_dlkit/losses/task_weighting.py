"""The base of all ways to make one loss of those of several outputs."""

from typing import Any

import keras
from keras import ops


class TaskWeighting(keras.layers.Layer):
    r"""Base class of parts that weigh the losses of several outputs.

    What is minimised instead of the sum \(\sum_k L_k\) of Keras is

    $$\sum_k w_k L_k + p$$

    and a subclass says what the weights \(w\) are: from the losses
    (`weigh`), or from the gradients of the losses (`weigh_gradients`). It
    may have a `penalty` \(p\), and a state, made in `make_state` with
    `add_weight`: trainable weights are trained along with the network, within
    their `constraint`, neither decayed nor perturbed.

    Give it to `keras_dlkit.attach`, and `compile` with a loss an output, as a
    dict or a list. `compile(loss_weights=...)` multiplies the losses before
    they get here. The logged losses of the outputs are Keras's own, not
    weighted; the weights are logged as `<output>_weight`; `loss` is what was
    minimised in training, and in evaluation the sum of Keras, which stays
    comparable between epochs.

    Args:
        tasks: `None` (all outputs with a loss), or a list of the names or
            indices of these outputs. `compile` checks that they are the same.
        name: String. The name of the layer.

    State: layer weights, those of `make_state`, and the last weights.
    Runs: in `compute_loss`, once a pass, in training.
    Cost: that of `weigh`, on a vector with an entry a task.

    Raises:
        TypeError: At construction, for `tasks` that are no such list.
        ValueError: In `compile`, where they are not the outputs that have a
            loss.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    @keras.saving.register_keras_serializable()
    class LargestFirst(dlkit.losses.TaskWeighting):
        def weigh(self, losses):
            return keras.ops.softmax(losses)

    x = keras.Input((4,))
    outputs = {name: keras.layers.Dense(1, name=name)(x) for name in "ab"}
    model = dlkit.attach(keras.Model(x, outputs), LargestFirst())
    model.compile("sgd", loss={"a": "mse", "b": "mae"})
    ```
    """

    # Whether the weights of a step do not depend on its losses.
    is_linear = False
    # Whether losses must be positive for the weights to mean anything.
    needs_positive = False
    # Whether `weigh_gradients` is asked, instead of `weigh`.
    needs_gradients = False
    # Whether the losses at the new weights are shown to `look_again`.
    looks_again = False
    # Whether `set_epoch` makes a difference.
    follows_epochs = False

    def __init__(
        self,
        tasks: list[str | int] | None = None,
        *,
        name: str | None = None,
    ):
        super().__init__(dtype="float32", autocast=False, name=name)
        self.built = True
        self.tasks: Any = None
        self._found_tasks = False
        self._keys: tuple = ()
        self.names: tuple = ()
        if tasks is not None:
            self._set_tasks(_checked_tasks(tasks))

    # What a weighting is.

    def weigh(self, losses: Any) -> Any:
        """The weights of this step, in training.

        Args:
            losses: Float32 tensor `(tasks,)`, constants to the gradient.

        Returns:
            Float32 tensor `(tasks,)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must have `weigh`")

    def weigh_gradients(self, products: Any) -> Any:
        """The weights of this step, where `needs_gradients` is set.

        Each task then has a backward pass of its own, and what is applied is
        the weighted sum of their gradients and the gradient of what
        regularizers add, whatever the loss.

        Args:
            products: Float32 tensor `(tasks, tasks)`: the inner products of
                the gradients of the tasks, over all weights.

        Returns:
            Float32 tensor `(tasks,)`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must have `weigh_gradients`"
        )

    def penalty(self) -> Any:
        """What is minimised besides, a scalar."""
        return 0.0

    def make_state(self) -> None:
        """Adds the weights of this layer, now that `tasks` are known."""

    def look_again(self, losses: Any) -> None:
        """Learns from what the step did, where `looks_again` is set.

        Args:
            losses: Float32 tensor `(tasks,)`: the losses of the same batch
                after the update, with the same dropout.
        """

    def lowest_losses(self) -> list[float]:
        """What the losses cannot go below, where `needs_positive` is set."""
        return [0.0] * len(self.tasks)

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is, counted from 0; `fit` does it by itself."""

    # Where it runs.

    def combine(self, losses: dict) -> Any:
        """What to minimise.

        Args:
            losses: Dict from the key of an output (its name; its index, where
                it has none) to its loss, a scalar.

        Returns:
            A scalar tensor, float32.
        """
        values = self.vector(losses)
        if self.needs_gradients:
            return ops.sum(values)
        constants = ops.stop_gradient(values)
        if self.needs_positive:
            above = constants - ops.convert_to_tensor(
                self.lowest_losses(), "float32"
            )
            excess = ops.convert_to_tensor(self.excess)
            # A NaN is not less.
            self.excess.assign(ops.where(above < excess, above, excess))
        weights = ops.cast(self.weigh(constants), "float32")
        self.last_weights.assign(ops.stop_gradient(weights))
        return ops.sum(weights * values) + self.penalty()

    def vector(self, losses: dict) -> Any:
        """The losses in the order of `tasks`, float32."""
        return ops.stack(
            [ops.cast(loss, "float32") for loss in self.ordered(losses)]
        )

    def ordered(self, losses: dict):
        return [losses[key] for key in self._keys]

    def call(self, losses):
        return self.combine(losses)

    def bind(self, keys: list, aliases: dict) -> None:
        """Says which losses there are; `compile` of `attach` does it.

        Args:
            keys: The keys of the losses: names, or indices.
            aliases: Dict from what else an output may be called, as its
                index, to its key.
        """
        if self.tasks is None:
            self._set_tasks(keys)
            self._found_tasks = True
        resolved = [t if t in keys else aliases.get(t) for t in self.tasks]
        if set(resolved) != set(keys) or len(resolved) != len(keys):
            kind = type(self).__name__
            raise ValueError(
                f"The tasks of {kind} must be the outputs that `compile` has a "
                f"loss for. Received: {list(self.tasks)}, and losses of "
                f"{list(keys)}. "
                + (
                    "The tasks are those of the `compile` before; for others "
                    f"take a new one: `attach(detach(model), {kind}(...))`."
                    if self._found_tasks
                    else f"Name each of {list(keys)} once."
                )
            )
        self._keys = tuple(resolved)
        self.names = tuple(
            key if isinstance(key, str) else f"output_{key}" for key in resolved
        )

    def logs(self) -> dict[str, Any]:
        """The last weights, by the names they are logged under."""
        last = ops.convert_to_tensor(self.last_weights)
        return {
            f"{name}_weight": last[index]
            for index, name in enumerate(self.names)
        }

    def _set_tasks(self, tasks):
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(
                "`tasks` must be names or indices of outputs, at least one, "
                f"each once. Received: tasks={tasks}"
            )
        self.tasks = self._keys = tuple(tasks)
        self.last_weights = self.add_state("last_weights", "ones")
        if self.needs_positive:
            # How far losses went below the lowest, for the warning of `fit`.
            self.excess = self.add_state("excess")
        self.make_state()

    def add_state(
        self, name: str, initializer: Any = "zeros", shape: tuple | None = None
    ) -> keras.Variable:
        """Adds a float32 weight that is not trained, `(tasks,)` by default."""
        return self.add_weight(
            shape=(len(self.tasks),) if shape is None else shape,
            initializer=initializer,
            trainable=False,
            aggregation="only_first_replica",
            name=name,
        )

    def get_config(self):
        tasks = None if self.tasks is None else list(self.tasks)
        return {"tasks": tasks, "name": self.name}


def _checked_tasks(tasks):
    if not isinstance(tasks, (list, tuple)) or not all(
        isinstance(task, (str, int)) for task in tasks
    ):
        raise TypeError(
            "`tasks` must be a list of names or indices of outputs. "
            f"Received: tasks={tasks!r} of type {type(tasks)}"
        )
    return list(tasks)
