"""An ensemble that shares its kernels (Wen et al., 2020)."""

import random
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_dlkit import _checks
from keras_dlkit import _keras
from keras_dlkit._arguments import bound
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit._tree import leaves
from keras_dlkit._tree import map_leaves
from keras_dlkit.models import _averages
from keras_dlkit.models import _conversion
from keras_dlkit.models import _independent_batches
from keras_dlkit.models import _member_losses
from keras_dlkit.models._first_batch import rows_of
from keras_dlkit.models._members import Members
from keras_dlkit.models._members import structure
from keras_dlkit.models._members import tiled
from keras_dlkit.models._members import with_mask
from keras_dlkit.ops.batch_ensemble import WEN
from keras_dlkit.optimizers.learning_rate_multiplier import (
    LearningRateMultiplier,
)
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper

MEMBER_BATCHES = ("tile", "split", "independent")


@export
@cites(WEN)
class BatchEnsemble(keras.Model):
    r"""An ensemble of networks in little more than the memory of one.

    The members share each kernel \(W\). Member \(m\) sees it as
    \(W \odot r_m s_m^\top\), with vectors \(r_m\) and \(s_m\) of its own, and
    has biases and normalizations of its own. In training the loss is the mean
    of the losses of the members; `evaluate`, `predict` and a call give their
    averaged prediction.

    It is an ordinary Keras model: it is compiled, fitted, saved, exported and
    attached as any.

    Args:
        model: `keras.Model`, built, Sequential or Functional, models inside of
            it too. It is copied, not changed.
        ensemble_size: Integer, at least 1. The number of members.
        member_batches: What the members see of a batch in training:
            `"tile"`, all of it, each; `"split"`, a part of it each, which
            costs little more than one network; `"independent"`, as many rows
            each, all members going through the data in an order of their own
            (`fit` on arrays). Defaults to `"tile"`.
        convert: Boolean. Whether the layers of `model` are to be replaced by
            those of an ensemble. With `False`, `model` is built from these.
            Defaults to `True`.
        copy_weights: Boolean. Whether the kernels, and each member's other
            weights, begin as those of `model`. Defaults to `True`.
        shared: `None`, or a regular expression searched in the names of
            layers: these stay as they are, and are shared. So do layers
            without weights, and frozen ones.
        rank: Integer. The number of terms \(r s^\top\). Defaults to `1`.
        fast_initializer: As of `keras_dlkit.layers.DenseBatchEnsemble`;
            `"tabm"` draws signs for \(r\) of the first layer, and ones for all
            else. Take `"ones"` or an initializer near 1 for a network that is
            trained: random signs undo what it learned. Defaults to
            `"random_sign"`.
        fast_learning_rate: Float. What the learning rate of all weights that
            are a member's own is multiplied by. If it is not 1, `compile`
            puts a `keras_dlkit.optimizers.LearningRateMultiplier` around its
            optimizer. Defaults to `1.0`.
        average: How predictions are averaged. `"mean"`: as they are, right
            for probabilities and regression. `"softmax"`, `"sigmoid"`: they
            are logits; their probabilities are averaged, and the logits of
            that average are given. A list or dictionary of these for several
            outputs. `None`: what the loss in `compile` says, which is
            `"mean"` unless it is a crossentropy of Keras with
            `from_logits=True`. Defaults to `None`.
        seed: Integer, or `None` for a random one: of the fast weights, and of
            the orders of `"independent"`.
        name: String. The name of the model.

    Call arguments:
        inputs: As `model` takes them.
        training: Boolean. In training, with `"tile"`, the outputs have an
            axis of members after that of the rows; with the others, each row
            is predicted by the member that it belongs to.

    With `"split"` the batch size, where the data say it, must be a multiple of
    `ensemble_size`; of a last batch of fewer rows each counts once. Metrics are
    those of the average, but in training with `"split"` and `"independent"`
    those of the members.

    `member_predict(x)` gives the predictions of the members, `fold()` plain
    models of Keras.

    State: layer weights.
    Runs: as the model of `fit`.
    Cost: one network of `ensemble_size` times the rows; with `"split"` in
        training, of as many rows.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range, for
            a model that is subclassed or not built, and for layers and options
            of theirs that are not known, by name; in training, for rows that
            cannot be split and for data without an order.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    net = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    model = dlkit.models.BatchEnsemble(net, 4)
    model.compile("adam", "sparse_categorical_crossentropy")
    x = np.random.normal(size=(32, 4))
    model.fit(x, np.arange(32) % 3, verbose=0)
    model.predict(x, verbose=0).shape  # (32, 3)
    model.member_predict(x).shape  # (4, 32, 3)
    ```

    References:
        - [Wen et al., 2020](https://arxiv.org/abs/2002.06715)
        - [Gorishniy et al., 2025](https://arxiv.org/abs/2410.24210): TabM
    """

    def __init__(
        self,
        model: keras.Model,
        ensemble_size: int,
        *,
        member_batches: str = "tile",
        convert: bool = True,
        copy_weights: bool = True,
        shared: str | None = None,
        rank: int = 1,
        fast_initializer: Any = "random_sign",
        fast_learning_rate: float = 1.0,
        average: Any = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        size = _checks.check_count("ensemble_size", ensemble_size, at_least=1)
        _checks.check_one_of("member_batches", member_batches, MEMBER_BATCHES)
        _averages.check(average)
        if seed is not None:
            _checks.check_count("seed", seed, at_least=0)
        network = model
        if convert:
            options = {
                "ensemble_size": size,
                "rank": rank,
                "fast_initializer": fast_initializer,
                "fast_learning_rate": fast_learning_rate,
                "seed": seed,
            }
            network = _conversion.converted(
                model, copy_weights, shared, options
            )
        _conversion.check_network(network, size)
        super().__init__(
            dtype=network.dtype_policy,
            autocast=False,  # the network casts its inputs itself, or not
            name=name or f"batch_ensemble_{network.name}",
        )
        self.network = network
        self.ensemble_size = size
        self.member_batches = member_batches
        self.average = average
        # What `compile` said, for a model that is loaded without it.
        self._saved_average = None
        # Saved: the orders go on as they were.
        self.seed = random.randint(1, 10**9) if seed is None else seed
        self._most_rows = 0
        self.supports_masking = True
        self.built = True
        if convert:
            self._warn_of_twins(fast_initializer)

    def _warn_of_twins(self, fast_initializer):
        if (
            fast_initializer == "ones"
            and self.member_batches == "tile"
            and self.ensemble_size > 1
        ):
            warnings.warn(
                "Members that begin as one and see the same rows stay the same"
                ", but for dropout. Received: fast_initializer='ones', "
                "member_batches='tile'. Use another initializer, or "
                "member_batches='split'.",
                stacklevel=3,
            )

    # Forward.

    def call(self, inputs, training=None):
        if not training:
            return self._averaged(self.of_members(inputs))
        if self.member_batches == "tile":
            return self.of_members(inputs, training=True)
        return self._of_parts(inputs)

    def of_members(self, inputs: Any, training: bool = False) -> Any:
        """Outputs of shape `(rows, members, ...)`."""
        members = self.ensemble_size
        rows = map_leaves(lambda t: tiled(t, members), inputs)
        outputs = self.network(rows, training=training)

        def by_row(t):
            t = ops.reshape(t, (members, -1, *ops.shape(t)[1:]))
            return ops.transpose(t, (1, 0, *range(2, len(t.shape))))

        return map_leaves(lambda t: with_mask(by_row, t), outputs)

    def _of_parts(self, inputs):
        """Outputs of the rows, each by the member that it belongs to."""
        members = self.ensemble_size
        rows = ops.shape(leaves(inputs)[0])[0]
        if isinstance(rows, int) and rows % members == 0:
            return self.network(inputs, training=True)
        # As many rows for each: the first ones again, which are cut off.
        count = members * ((rows + members - 1) // members)
        indices = ops.arange(count, dtype="int32") % rows
        padded = map_leaves(lambda t: ops.take(t, indices, axis=0), inputs)
        outputs = self.network(padded, training=True)
        return map_leaves(lambda t: with_mask(lambda t: t[:rows], t), outputs)

    def _averaged(self, outputs):
        """The average of outputs `(rows, members, ...)`."""
        kinds = iter(self._kinds(outputs))

        def average(t):
            mask = _keras.get_mask(t)
            result = _averages.average(t, next(kinds), axis=1)
            if mask is not None:  # the same for all members
                _keras.set_mask(result, mask[:, 0])
            return result

        return map_leaves(average, outputs)

    def _kinds(self, outputs):
        """How each of the outputs is averaged, in their order."""
        paths = [path for path, _ in tree.flatten_with_path(outputs)]
        names = getattr(self.network, "output_names", [None] * len(paths))
        losses = self.loss if self.compiled else None
        saved = None if self.compiled else self._saved_average
        return [
            _averages.kind_of(self.average or saved, losses, *place)
            for place in zip(paths, range(len(paths)), names)
        ]

    def compute_output_spec(self, inputs, training=None):
        return self.network.compute_output_spec(inputs)

    def compute_output_shape(self, input_shape):
        return self.network.compute_output_shape(input_shape)

    def compute_mask(self, inputs, previous_mask=None):
        # The outputs carry their masks already.
        return None

    # Losses and metrics.

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if not training:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        row_wise = _member_losses.are_row_wise(self.loss)
        if self._holds_members(y_pred):
            losses = self._tiled_loss if row_wise else self._loss_by_member
        elif row_wise or self.member_batches == "tile":
            losses = super().compute_loss
        else:
            losses = self._loss_by_part
        return losses(x, y, y_pred, sample_weight, training)

    def _tiled_loss(self, x, y, y_pred, sample_weight, training):
        y, sample_weight = (
            _member_losses.rows_of_all(t, self.ensemble_size)
            for t in (y, sample_weight)
        )
        y_pred = map_leaves(
            lambda t: with_mask(
                lambda t: ops.reshape(t, (-1, *ops.shape(t)[2:])), t
            ),
            y_pred,
        )
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def _loss_by_member(self, x, y, y_pred, sample_weight, training):
        total = 0.0
        for member in range(self.ensemble_size):
            own = map_leaves(
                lambda t: with_mask(lambda t: t[:, member], t),  # noqa: B023
                y_pred,
            )
            total += super().compute_loss(x, y, own, sample_weight, training)
        return total / self.ensemble_size

    def _loss_by_part(self, x, y, y_pred, sample_weight, training):
        rows = ops.shape(leaves(y_pred)[0])[0]
        total = 0.0
        for start, end, share in _member_losses.parts(rows, self.ensemble_size):
            own = map_leaves(
                lambda t: t[start:end],  # noqa: B023
                (y, y_pred, sample_weight),
            )
            loss = super().compute_loss(x, *own, training)
            total += loss * ops.cast(share, loss.dtype)
        return total

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self._holds_members(y_pred):
            y_pred = self._averaged(y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _holds_members(self, y_pred):
        """Whether the outputs have an axis more than those of the network."""
        (first, *_), (output, *_) = leaves(y_pred), self.network.outputs
        return len(first.shape) == len(output.shape) + 1

    # Compilation.

    def compile(self, *args, **kwargs):
        arguments = bound(keras.Model.compile, self, args, kwargs)
        optimizer = keras.optimizers.get(arguments["optimizer"])
        known = find_wrapper(optimizer, LearningRateMultiplier)
        if optimizer and not known and self._has_multipliers:
            optimizer = LearningRateMultiplier(optimizer)
        if find_wrapper(optimizer, keras.optimizers.LossScaleOptimizer):
            # It may be inside, where Keras does not look for it.
            arguments["auto_scale_loss"] = False
        super().compile(**{**arguments, "optimizer": optimizer})

    @property
    def _has_multipliers(self):
        return any(
            layer.fast_learning_rate != 1.0
            for layer in _conversion.member_layers(self.network)
        )

    def get_compile_config(self):
        if not self.compiled:
            return {}
        return keras.saving.serialize_keras_object(
            _keras.compile_arguments(self)
        )

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    # Training.

    def fit(self, *args, **kwargs):
        arguments = bound(keras.Model.fit, self, args, kwargs)
        return super().fit(**self.prepare_fit(arguments))

    def prepare_fit(self, arguments: dict) -> dict:
        """The arguments of `fit`, checked, with what the members see.

        Called by `fit`, and by that of `keras_dlkit.attach`.
        """
        size = self.ensemble_size
        if self.member_batches == "split":
            return _independent_batches.check_split(arguments, size)
        if self.member_batches == "independent":
            return _independent_batches.independent(arguments, size, self.seed)
        return arguments

    def train_on_batch(self, x, *args, **kwargs):
        self.check_batch(x)
        return super().train_on_batch(x, *args, **kwargs)

    def check_batch(self, x: Any) -> None:
        """Raises for rows that cannot be split, unless more came before them.

        Called by `train_on_batch`, and by that of `keras_dlkit.attach`.
        """
        rows = rows_of((x,))
        if self.member_batches == "split" and rows >= self._most_rows:
            _independent_batches.check_rows(rows, self.ensemble_size)
            self._most_rows = rows

    # The members.

    def member_predict(self, x: Any, **kwargs: Any) -> Any:
        """The predictions of the members, each by itself.

        Args:
            x: As of `predict`.
            **kwargs: Those of `keras.Model.predict`, as `batch_size`.

        Returns:
            Arrays of shape `(members, rows, ...)`, in the structure of the
            outputs: not averaged, logits where the network gives logits.
        """
        # Not as an attribute of the model, which would save it.
        if "_members" not in vars(self):
            object.__setattr__(self, "_members", Members(self))
        outputs = self._members.predict(x, **{"verbose": 0, **kwargs})
        return tree.map_structure(lambda t: np.moveaxis(t, 1, 0), outputs)

    def fold(self, average: bool = False) -> Any:
        """Plain models of Keras with the same outputs.

        Args:
            average: Boolean. Whether to join them in one model with the
                averaged outputs. Defaults to `False`.

        Returns:
            A list of models, one a member, not compiled; with `average`, one
            model. They have no layer of keras_dlkit, and each a kernel of its
            own.
        """
        members = [
            _conversion.folded(self.network, member, renamed=average)
            for member in range(self.ensemble_size)
        ]
        if not average:
            return members
        inputs = self._new_inputs()
        outputs = tree.map_structure(
            lambda *t: ops.stack(t, axis=1), *(m(inputs) for m in members)
        )
        return keras.Model(inputs, self._averaged(outputs))

    def _new_inputs(self):
        return tree.map_structure(
            lambda t: keras.Input(
                batch_shape=t.shape, dtype=t.dtype, name=t.name
            ),
            structure(self.network, "input"),
        )

    # What people ask of a network.

    def export(self, *args, **kwargs):
        inputs = self._new_inputs()
        served = keras.Model(inputs, self(inputs))
        # Keras exports to ONNX only what has been called.
        served(inputs)
        return served.export(*args, **kwargs)

    @property
    def inputs(self):
        return self.network.inputs

    @property
    def outputs(self):
        return self.network.outputs

    @property
    def output_names(self):
        return self.network.output_names

    @property
    def input_shape(self):
        return self.network.input_shape

    @property
    def output_shape(self):
        return self.network.output_shape

    def get_config(self):
        return {
            "model": keras.saving.serialize_keras_object(self.network),
            "ensemble_size": self.ensemble_size,
            "member_batches": self.member_batches,
            "average": self.average,
            "saved_average": self._kinds(structure(self.network, "output")),
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        network = keras.saving.deserialize_keras_object(
            config.pop("model"), custom_objects=custom_objects
        )
        saved = config.pop("saved_average", None)
        model = cls(network, convert=False, **config)
        model._saved_average = saved
        return model
