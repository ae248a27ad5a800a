"""SDE-Net (Kong et al., 2020): uncertainty from one training of one net."""

from typing import Any

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit import _isolated
from keras_dlkit import _keras
from keras_dlkit._arguments import bound
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit._random_state import RandomState
from keras_dlkit._train_step import reads
from keras_dlkit._tree import leaves
from keras_dlkit.layers._sde_nets import masked
from keras_dlkit.layers.concatenate_time import KONG
from keras_dlkit.layers.sde_block import SDEBlock
from keras_dlkit.models import _range
from keras_dlkit.models._first_batch import first_batch
from keras_dlkit.models._first_batch import inputs_of
from keras_dlkit.models._sampler import Sampler
from keras_dlkit.models._unknown import make_source

OUTPUTS = ("logits", "probabilities", "mean_and_scale")


@cites(KONG)
@export
class SDENet(keras.Model):
    r"""A network that knows what it does not know: stem, SDE and head.

    With \(h\) the stem, \(g\) the diffusion of the block and \(\tilde x\)
    inputs from outside of what is learned, one `fit` minimises

    $$L(y, \text{head}(\text{block}(h(x)))) + w\,\bigl(
      \text{mean} -\log(1 - g(h(x))) + \text{mean} -\log g(h(\tilde x))\bigr)$$

    of which the first term trains stem, drift and head and passes through the
    diffusion without training it, and the others train the diffusion alone. So
    the paths of what is known stay together, and those of the unknown spread.

    `predict` and `evaluate` follow the drift alone; `predict_uncertainty` draws
    paths. It is an ordinary Keras model: `compile`, `fit`, `save`,
    `keras_dlkit.attach`.

    Args:
        stem: `keras.layers.Layer` from the inputs to the state. Normalize by
            group or layer in it, as in the paper, not by batch: batch
            statistics of unknown inputs hide what is unknown about them.
        block: `keras_dlkit.layers.SDEBlock`. Its diffusion must end with a
            sigmoid (under mixed precision in a layer with `dtype="float32"`),
            and be isolated, as it is unless told otherwise.
        head: `keras.layers.Layer` from the state to the outputs.
        ood: Where unknown inputs come from. `"gaussian"`: the batch plus
            `ood_scale` times standard normals. A function of the batch (also
            a layer) to inputs of its shape: register it with
            `keras.saving.register_keras_serializable` to save the model.
            Arrays, or a data set of batches: random rows of it, which the
            model keeps in its memory, and saves. What is given must have the
            structure, shape and kind of dtype of the inputs.
        ood_scale: Float, at least 0, in the units of the inputs. Defaults to
            `2.0`, as in the paper, whose inputs are standardized. With images
            of uint8 that is 2 of 255: scale it, and let the stem begin with a
            `keras.Input` of float32 and `Rescaling`. The noisy ones are
            floats, neither rounded nor clipped.
        ood_weight: Float, at least 0. The weight \(w\). Defaults to `1.0`.
        outputs: What the head gives: `"logits"` or `"probabilities"` of
            classes, along the last axis, or `"mean_and_scale"` (see
            `keras_dlkit.layers.MeanAndScale`). Defaults to `"logits"`.
        alternating: Boolean. With `True`, the order of the paper: first a step
            of stem, drift and head, then one of the diffusion with the new
            stem. It needs a `keras.optimizers.MultiOptimizer`, costs one more
            pass of the stem, and cannot be attached. Defaults to `False`: both
            in one step.
        seed: Integer, or `None` for a random one; of the unknown inputs.
        **kwargs: Those of `keras.Model`.

    State: the weights of the three parts; random states, which are saved
        with them; rows of `ood`, if it is data.
    Runs: in every forward pass; losses of the diffusion in training alone.
    Cost: in training, beside stem, block and head: one forward pass of the
        stem, and two passes of the diffusion.

    Sample weights and class weights act on the first term only. `fit` logs
    `loss_in` and `loss_out`, the two terms of the diffusion, beside `loss`,
    their weighted sum with the first. The validation loss is the first alone;
    so is `loss` with `alternating=True`, where the others have their own step.

    Raises:
        TypeError, ValueError: At construction, for arguments that are none;
            there, or before the first step if the stem is not built yet, for a
            diffusion that is not between 0 and 1 (then by its last layer
            alone) and parts that do not fit together; before the first step
            for unknown inputs of another shape.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    model = dlkit.models.SDENet(
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)]),
        dlkit.layers.SDEBlock(
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(1, "sigmoid"),
            num_steps=4,
            t_end=4.0,
            sigma=0.5,
        ),
        keras.layers.Dense(3),
    )
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x = np.random.normal(size=(16, 4))
    model.fit(x, np.arange(16) % 3, verbose=0)
    found = model.predict_uncertainty(x, samples=5)
    found["mean"].shape, found["epistemic"].shape  # (16, 3), (16,)
    ```

    References:
        - [Kong et al., 2020](https://arxiv.org/abs/2008.10546)
    """

    def __new__(cls, *args, alternating=False, **kwargs):
        if alternating and cls is SDENet:
            from keras_dlkit.models._alternating import AlternatingSDENet

            cls = AlternatingSDENet
        return super().__new__(cls, *args, **kwargs)

    def __init__(
        self,
        stem: keras.layers.Layer,
        block: SDEBlock,
        head: keras.layers.Layer,
        *,
        ood: Any = "gaussian",
        ood_scale: float = 2.0,
        ood_weight: float = 1.0,
        outputs: str = "logits",
        alternating: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        # Inputs are cast by the stem; targets and losses not at all.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        _check_parts(stem, block, head)
        self.stem, self.block, self.head = stem, block, head
        check = _checks.check_number
        self.ood_scale = check("ood_scale", ood_scale, at_least=0)
        self.ood_weight = check("ood_weight", ood_weight, at_least=0)
        self.outputs_are = _checks.check_one_of("outputs", outputs, OUTPUTS)
        self.alternating = bool(alternating)
        if seed is not None:
            seed = _checks.check_count("seed", seed, at_least=0)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.unknown = make_source(ood, self.ood_scale, self.seed_generator)
        self.random_state = RandomState(self._seed_states, name="random_state")
        self.loss_in = keras.metrics.Mean(name="loss_in")
        self.loss_out = keras.metrics.Mean(name="loss_out")
        self._noted = None
        self._logs_diffusion = False
        self._unknown_is_checked = False
        if stem.built and getattr(stem, "inputs", None):
            # A call, not `build`: Keras exports no model that was never called.
            self(_symbolic(stem.input_shape, stem))
            _range.check_values(block.diffusion, self._state_shape)

    def build(self, input_shape):
        if self.built:
            return
        _range.check_activation(self.block.diffusion)
        self.unknown.meet(self.stem)
        hidden = self.stem(_symbolic(input_shape, self.stem))
        hidden = self.block(hidden)
        outputs = self.head(hidden)
        if self.outputs_are == "mean_and_scale" and outputs.shape[-1] % 2:
            raise ValueError(
                "`head` must give as many means as scales with "
                "outputs='mean_and_scale'. Received: outputs of shape "
                f"{tuple(outputs.shape)}"
            )
        self._state_shape = tuple(hidden.shape)
        self.built = True

    # Passes.

    def call(self, inputs, training=None):
        # On JAX a model's own call is not told of `training` by its caller.
        hidden = self.stem(inputs, training=training)
        outputs = self.block(hidden, training=training)
        outputs = self.head(outputs, training=training)
        if training:
            self.train_diffusion(inputs, hidden)
        return outputs

    def train_diffusion(self, inputs: Any, hidden: Any) -> None:
        """Adds the losses of the diffusion, and notes them for the logs."""
        known, unknown = self.diffusion_losses(inputs, hidden)
        self.add_loss(self.ood_weight * (known + unknown))
        # Past the attributes that Keras keeps track of.
        object.__setattr__(self, "_noted", (known, unknown))

    def diffusion_losses(self, inputs: Any, hidden: Any) -> tuple:
        """What the diffusion has to learn: 0 on inputs, 1 on unknown ones."""
        others = self.unknown(inputs)
        # What unknown inputs would do to batch statistics is dropped.
        hidden_others = _isolated.run_frozen(
            self.stem,
            lambda: self.stem(others, training=True),
            keep_statistics=False,
        )
        known = self._diffusion_of(hidden)
        unknown = self._diffusion_of(hidden_others)
        return _mean_log(1.0 - known), _mean_log(unknown)

    def _diffusion_of(self, hidden):
        mask = _keras.get_mask(hidden)
        hidden = masked(ops.stop_gradient(hidden), mask)
        g = self.block.diffusion(hidden, training=True)
        dtype = keras.backend.standardize_dtype(g.dtype)
        return g if dtype == "float64" else ops.cast(g, "float32")

    # Unknown inputs are looked at before the first step: on JAX an error in it
    # leaves a model without weights.

    def fit(self, *args, **kwargs):
        arguments = bound(keras.Model.fit, self, args, kwargs)
        if not self._unknown_is_checked:
            batch, arguments["x"] = first_batch(arguments["x"])
            if batch is not None:
                self.check_unknown(inputs_of(batch))
        return super().fit(**arguments)

    def train_on_batch(self, x, *args, **kwargs):
        self.check_unknown(x)
        return super().train_on_batch(x, *args, **kwargs)

    def check_unknown(self, inputs: Any) -> None:
        """Raises for a first batch unlike what `ood` gives."""
        if not self._unknown_is_checked:
            self.unknown.check(inputs)
            self._unknown_is_checked = True

    # Losses and logs.

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        self._logs_diffusion = bool(training)
        # In evaluation there may be what another graph has left.
        noted = vars(self).pop("_noted", None)
        self.note(noted if training else None)
        return reads.before_gradients(loss) if training else loss

    def note(self, losses):
        if losses is not None:
            self.loss_in.update_state(losses[0])
            self.loss_out.update_state(losses[1])

    def get_metrics_result(self):
        results = super().get_metrics_result()
        if not self._logs_diffusion:  # there are none in evaluation
            results = {
                name: value
                for name, value in results.items()
                if name not in ("loss_in", "loss_out")
            }
        return results

    # Uncertainty.

    def predict_uncertainty(
        self,
        x: Any,
        samples: int = 10,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        verbose: str | int = "auto",
        callbacks: Any = None,
    ) -> dict:
        """Predicts with random paths, all of a batch at once.

        Stem, diffusion and the first step of the drift are computed once. The
        noise is the block's `sigma_inference`, and other noise at each call.

        Args:
            x: Inputs, as in `predict`.
            samples: Integer, at least 2. Paths of each input.
            batch_size: Integer. The memory is that of `samples` times as many
                states. Defaults to 32.
            steps: As in `predict`.
            verbose: As in `predict`.
            callbacks: As in `predict`.

        Returns:
            Dict of arrays. `"mean"` and `"std"`: mean and standard deviation
            over the paths, of probabilities or of predicted means. `"total"`,
            `"aleatoric"`, `"epistemic"`: entropies in nats, `(rows,)`, for
            classes (see `keras_dlkit.ops.categorical_uncertainty`); variances
            for numbers (`keras_dlkit.ops.gaussian_uncertainty`).
            `"diffusion"`: what the diffusion says of the input, `(rows,)`.

        Raises:
            ValueError: For outputs that are not what `outputs` said.
        """
        samples = _checks.check_count("samples", samples, at_least=2)
        sampler = self._sampler(samples)
        sampler.run_eagerly = self.run_eagerly
        found = sampler.predict(
            x,
            batch_size=batch_size,
            steps=steps,
            verbose=verbose,
            callbacks=callbacks,
        )
        if self.outputs_are != "mean_and_scale":
            self._check_outputs(*map(found.pop, ("_least", "_sum", "_off")))
        return found

    def _sampler(self, samples):
        # Past the attributes that Keras keeps track of, and saves.
        samplers = vars(self).setdefault("_samplers", {})
        if samples not in samplers:
            samplers[samples] = Sampler(self, samples)
        return samplers[samples]

    def _check_outputs(self, least, sums, off):
        # Logits may come near to a sum of 1 by chance, in a single row.
        low = self.compute_dtype.endswith("16")
        says = self.outputs_are == "probabilities"
        most = 1e-2 if low or says else 1e-4
        if says != bool((least >= 0).all() and (off <= most).all()):
            raise ValueError(
                f"The head must give {self.outputs_are}, as `outputs` says. "
                f"Received: outputs that sum up to {sums.ravel()[:3]}, ... "
                "over the classes. Say outputs='logits' for logits, and "
                "outputs='probabilities' for those after a softmax."
            )

    # Saving.

    def _seed_states(self):
        weights = {id(v) for v in self.non_trainable_weights}
        return [v for v in self.non_trainable_variables if id(v) not in weights]

    def compute_output_shape(self, input_shape):
        hidden = self.stem.compute_output_shape(input_shape)
        return self.head.compute_output_shape(hidden)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "stem": serialize(self.stem),
            "block": serialize(self.block),
            "head": serialize(self.head),
            "ood": self.unknown.get_source(),
            "ood_scale": self.ood_scale,
            "ood_weight": self.ood_weight,
            "outputs": self.outputs_are,
            "alternating": self.alternating,
            "seed": self.seed,
            "name": self.name,
            "dtype": serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("stem", "block", "head", "dtype", "ood"):
            if isinstance(config[name], dict) and "__rows__" in config[name]:
                continue
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        return cls(**config)


def _mean_log(p):
    """The mean of -log p, finite where p is 0."""
    return -ops.mean(ops.log(ops.maximum(p, 1e-7)))


def _symbolic(shape, stem):
    """Keras tensors of the shapes, in the dtypes that the stem takes."""
    known = [t.dtype for t in leaves(getattr(stem, "inputs", None) or [])]
    dtypes = iter(known)

    def tensor(shape):
        return keras.KerasTensor(shape, dtype=next(dtypes, "float32"))

    if isinstance(shape, (list, tuple)) and all(
        size is None or isinstance(size, int) for size in shape
    ):
        return tensor(shape)
    if isinstance(shape, dict):
        return {name: tensor(size) for name, size in shape.items()}
    return [tensor(size) for size in shape]


def _check_parts(stem, block, head):
    for name, part in (("stem", stem), ("head", head)):
        if not isinstance(part, keras.layers.Layer):
            raise TypeError(
                f"`{name}` must be a `keras.layers.Layer`. "
                f"Received: {name}={part!r} of type {type(part)}"
            )
    if not isinstance(block, SDEBlock):
        raise TypeError(
            "`block` must be a `keras_dlkit.layers.SDEBlock`. "
            f"Received: block={block!r} of type {type(block)}"
        )
    if not block.isolate_diffusion:
        raise ValueError(
            "`block` must have `isolate_diffusion=True`: the loss of the task "
            "does not train the diffusion, which has losses of its own. "
            f"Received: {block.name!r} with isolate_diffusion=False"
        )
