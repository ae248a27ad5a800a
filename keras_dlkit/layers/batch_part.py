"""The base of all parts that change a batch: inputs, targets and weights."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlkit import _checks
from keras_dlkit._train_step import asserts
from keras_dlkit._tree import leaves
from keras_dlkit._tree import map_leaves


class BatchPart(keras.layers.Layer):
    """Base class of parts that change inputs, targets and weights together.

    A part is called on `(x, y)` or `(x, y, sample_weight)`, each a tensor or
    any structure of tensors, and returns the same. It runs in
    `keras_dlkit.attach` on every backend, on plain arrays (NumPy in, NumPy
    out), in a `keras.utils.PyDataset`, and in `tf.data.Dataset.map` on the
    TensorFlow backend.

    A subclass says what it draws at random (`draw`) and what it does with it
    (`apply`); and, if it needs targets of another form, how both training and
    evaluation get them (`encode`). For `RandomChoice`, `apply` must keep shapes
    and dtypes: what has to change them goes into `prepare`. What metrics of
    `fit` are measured on, if not the changed targets, says `metric_targets`.

    Args:
        active_epochs: `None` (always), or `(start, end)`: the half-open range
            of epochs, counted from 0, in which the part changes anything.
            `fit` of an attached model keeps count; elsewhere call `set_epoch`.
        seed: Integer, or `None` for a random one.
        name: String. The name of the layer.

    Call arguments:
        data: `(x, y)` or `(x, y, sample_weight)`.
        training: Boolean. With `False`, targets are encoded and nothing else
            is done. Defaults to `True`.

    State: layer weights, the random seed and the epoch; not trainable.
    Runs: in the train step, once a batch, before both passes.
    Cost: that of `apply`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    @keras.saving.register_keras_serializable()
    class Jitter(dlkit.layers.BatchPart):
        def draw(self, batch_size, seed):
            return keras.random.normal((batch_size, 1), seed=seed)

        def apply(self, x, y, sample_weight, draw):
            return x + 0.1 * draw, y, sample_weight
    ```
    """

    # Whether `metric_targets` gives other targets than `apply`.
    dominant_metrics = False
    # Names of the layers whose outputs `hidden_draws` are for.
    mixes_at = ()

    def __init__(
        self,
        *,
        active_epochs: tuple[int, int] | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        # float32 and no autocast: a mixed policy must not touch targets.
        super().__init__(dtype="float32", autocast=False, name=name)
        self.active_epochs = _check_epochs(active_epochs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.epoch = None
        if active_epochs is not None:
            self.epoch = self.add_weight(
                shape=(),
                dtype="int32",
                initializer="zeros",
                trainable=False,
                name="epoch",
            )
        self.built = True

    # What a part is.

    def draw(self, batch_size: Any, seed: Any) -> Any:
        """All the randomness of one batch.

        Args:
            batch_size: Integer, or scalar integer tensor.
            seed: `keras.random.SeedGenerator`.
        """
        del batch_size, seed

    def prepare(
        self, x: Any, y: Any, sample_weight: Any
    ) -> tuple[Any, Any, Any]:
        """`(x, y, sample_weight)` in the shapes and dtypes of `apply`.

        In training only; preparing what is prepared must change nothing.
        """
        return x, y, sample_weight

    def apply(self, x: Any, y: Any, sample_weight: Any, draw: Any) -> tuple:
        """The changed `(x, y, sample_weight)`; `None` entries stay `None`."""
        raise NotImplementedError(f"{type(self).__name__} must have `apply`")

    def encode(self, y: Any) -> Any:
        """Targets as the loss gets them, in training and evaluation.

        Encoding what is encoded must change nothing.
        """
        return y

    def metric_targets(
        self, x: Any, y: Any, sample_weight: Any, draw: Any
    ) -> Any:
        """The targets of metrics in `fit`, by default those of the loss."""
        batch = self.prepare(x, self.encode(y), sample_weight)
        return self.apply(*batch, draw)[1]

    def hidden_draws(self, draw: Any) -> Any:
        """Shares and permutations `(lam, permutation)` for `mixes_at`."""
        del draw
        return []

    def check_model(self, model: keras.Model) -> None:
        """Raises, in `attach`, for a model that the part is not for."""

    def check_targets(self, y: Any) -> None:
        """Raises for NumPy targets that `encode` cannot take."""

    def check_labels(self, y: Any) -> None:
        """The same for a batch, by what a few rows can say."""

    def encodes(self, output: Any = None) -> bool:
        """Whether `encode` makes integer targets one-hot.

        Args:
            output: Key or index of an output, or a tuple of them where
                outputs are nested; `None` for any.
        """
        del output
        return False

    # Where it runs.

    def call(self, data, training=True):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        batch_size = common_batch_size((x, y, sample_weight))
        self.check_labels(y)
        y = self.encode(y)
        if training:
            x, y, sample_weight = self.prepare(x, y, sample_weight)
            draw = self.draw(batch_size, self.seed_generator)
            x, y, sample_weight = self.apply(x, y, sample_weight, draw)
        return (x, y, sample_weight)[: len(data)]

    def __call__(self, data, **kwargs):
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise ValueError(
                f"{type(self).__name__} takes a batch as `(x, y)` or "
                f"`(x, y, sample_weight)`. Received: {_describe(data)}"
            )
        if self.mixes_at:
            raise ValueError(
                f"{type(self).__name__} mixes the output of a layer, which a "
                "batch alone does not have. Use it in `keras_dlkit.attach`. "
                f"Received: a batch, and at={list(self.mixes_at)}"
            )
        if all(isinstance(leaf, np.ndarray) for leaf in leaves(data)):
            self.check_targets(data[1])
            outputs = super().__call__(tuple(data), **kwargs)
            return map_leaves(ops.convert_to_numpy, outputs)
        return super().__call__(tuple(data), **kwargs)

    def is_active(self) -> Any:
        """`True`, or a boolean tensor where `active_epochs` is set."""
        if self.active_epochs is None:
            return True
        start, end = self.active_epochs
        epoch = ops.convert_to_tensor(self.epoch)
        return (epoch >= start) & (epoch < end)

    @property
    def follows_epochs(self) -> bool:
        """Whether `set_epoch` makes a difference."""
        return self.epoch is not None

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch it is, counted from 0; `fit` does it by itself."""
        if self.epoch is not None:
            self.epoch.assign(epoch)

    def compute_output_shape(self, data_shape):
        return data_shape

    def get_config(self):
        return {
            "name": self.name,
            "active_epochs": self.active_epochs,
            "seed": self.seed,
        }


def common_batch_size(data):
    """The number of rows, known or dynamic, that all tensors must share."""
    tensors = leaves(data)
    expected = "`x`, `y` and `sample_weight` must have the same batch size."
    sizes = {tensor.shape[0] for tensor in tensors}
    if len(sizes - {None}) > 1:
        raise ValueError(f"{expected} Received: {_describe(data)}")
    rows = ops.shape(tensors[0])[0]
    for tensor in tensors[1:] if None in sizes else ():
        rows = asserts.require(
            lambda: ops.shape(tensor)[0] == rows,  # noqa: B023
            f"{expected} Received: others",
            rows,
        )
    return rows


def _describe(data):
    return map_leaves(lambda x: getattr(x, "shape", x), data)


def _check_epochs(epochs):
    if epochs is None:
        return None
    if not isinstance(epochs, (tuple, list)) or len(epochs) != 2:
        raise ValueError(
            "`active_epochs` must be None or `(start, end)`. "
            f"Received: active_epochs={epochs!r}"
        )
    start = _checks.check_count("active_epochs[0]", epochs[0], at_least=0)
    end = _checks.check_count("active_epochs[1]", epochs[1], at_least=start)
    return start, end
