"""What the layers of an ensemble share: small weights, one set a member."""

import random

import keras
import numpy as np
from keras import ops

from keras_dlkit import _checks
from keras_dlkit._papers import cites
from keras_dlkit.layers import _fast_draws
from keras_dlkit.ops.batch_ensemble import GORISHNIY
from keras_dlkit.ops.batch_ensemble import WEN
from keras_dlkit.ops.batch_ensemble import batch_ensemble

# The weights of which each member has its own, with an axis of members first.
OWN = ("bias", "gamma", "beta", "scale", "moving_mean", "moving_variance")


def _for_each(function, joined):
    """`function` of the weight of each member by itself."""
    return lambda weight: joined(
        [function(own) for own in ops.unstack(ops.convert_to_tensor(weight))]
    )


def _mean(penalties):
    return sum(penalties) / len(penalties)


@cites(WEN)
class MemberLayer:
    """Mixed in before a layer of Keras, whose small weights it multiplies.

    The rows are those of the first member, those of the second, and so on.
    `plain` is the layer of Keras, `kernels` the names of its shared kernels,
    each with the prefix of the names of its fast weights.
    """

    plain = None
    kernels: dict[str, str] = {}
    # Options of the layer of Keras that are not known here.
    unknown: tuple[str, ...] = ("lora_rank", "quantization_mode")

    def __init__(self, *args, ensemble_size, fast_learning_rate=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        for name in self.unknown:
            # Versions of Keras do not have them all.
            value = getattr(self, name, None)
            if value:
                raise ValueError(
                    f"{type(self).__name__} does not know `{name}`. Received: "
                    f"{name}={value!r}. Leave it out, or leave the layer of "
                    "Keras, which all members share."
                )
        self.ensemble_size = _checks.check_count(
            "ensemble_size", ensemble_size, at_least=1
        )
        self.fast_learning_rate = _checks.check_number(
            "fast_learning_rate", fast_learning_rate, at_least=0
        )

    def add_weight(self, shape=None, *args, name=None, **kwargs):
        if name not in OWN:
            return super().add_weight(shape, *args, name=name, **kwargs)
        shape = (self.ensemble_size, *shape)
        # What a plain layer says of its weight is said of each member's. The
        # penalty is their mean, as the loss is.
        for option, joined in (
            ("regularizer", _mean),
            ("constraint", ops.stack),
        ):
            function = kwargs.get(option)
            if function is not None:
                kwargs[option] = _for_each(function, joined)
        variable = super().add_weight(shape, *args, name=name, **kwargs)
        return self._tagged(variable)

    def _tagged(self, variable):
        # Read by `optimizers.LearningRateMultiplier`.
        variable.learning_rate_multiplier = self.fast_learning_rate
        return variable

    # Layers of Keras save the weights that they know of.

    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        return {**super().get_config(), **self._member_config()}

    def _member_config(self):
        return {
            "ensemble_size": self.ensemble_size,
            "fast_learning_rate": self.fast_learning_rate,
        }

    # To and from plain layers.

    def plain_layer(self):
        """A layer of Keras of the same configuration, not built."""
        config = self.get_config()
        for name in self._member_config():
            config.pop(name)
        return self.plain.from_config(config)

    def take_weights(self, layer):
        """Takes those of a plain layer, small ones for each member."""
        ours = {v.name: v for v in self.variables}
        for variable in layer.variables:
            target = ours[variable.name]
            value = ops.convert_to_numpy(variable.value)
            # A copy: JAX gives the memory of weights away when it trains.
            target.assign(np.broadcast_to(value, target.shape).copy())

    def give_weights(self, member, layer):
        """Gives one member's weights to a plain layer."""
        ours = {v.name: v for v in self.variables}
        for variable in layer.variables:
            value = ops.convert_to_numpy(ours[variable.name].value)
            if variable.name in OWN:
                value = value[member]
            elif variable.name in self.kernels:
                value = value * self._kernel_factor(variable.name, member)
            variable.assign(np.array(value, "float32"))


@cites(GORISHNIY, when=lambda layer: layer.fast_initializer == "tabm")
class FastLayer(MemberLayer):
    """A `MemberLayer` with a kernel, which members share, and fast weights."""

    def __init__(
        self,
        *args,
        ensemble_size,
        rank=1,
        fast_initializer="random_sign",
        seed=None,
        **kwargs,
    ):
        super().__init__(*args, ensemble_size=ensemble_size, **kwargs)
        # Convolutions call the number of their spatial axes `rank`.
        self.fast_rank = _checks.check_count("rank", rank, at_least=1)
        self.fast_initializer = _fast_draws.checked(fast_initializer)
        if seed is not None:
            seed = _checks.check_count("seed", seed, at_least=0)
        self.seed = seed

    def add_scales(self, kernel, input_shape, output_shape):
        """Makes the fast weights of a kernel: r and s."""
        seed = random.randint(1, 10**9) if self.seed is None else self.seed
        index = list(self.kernels).index(kernel)
        for side, shape in (("input", input_shape), ("output", output_shape)):
            name = f"{self.kernels[kernel]}{side}_scale"
            variable = self.add_weight(
                shape=(self.ensemble_size, self.fast_rank, *shape),
                initializer=_fast_draws.FastDraw(
                    self.fast_initializer, side, [seed, index, len(side)]
                ),
                name=name,
            )
            setattr(self, name, self._tagged(variable))

    def scales_of(self, kernel):
        """The variables r and s of a kernel."""
        prefix = self.kernels[kernel]
        return [
            getattr(self, f"{prefix}{side}_scale")
            for side in ("input", "output")
        ]

    def scaled(self, inputs, function, kernel="kernel", **options):
        """The kernel's `function` of the rows, as the members see it."""
        r, s = map(ops.convert_to_tensor, self.scales_of(kernel))
        return batch_ensemble(inputs, function, r, s, **options)

    def biases(self):
        """The biases of the members, or `None`."""
        return None if self.bias is None else ops.convert_to_tensor(self.bias)

    def activated(self, outputs):
        if self.activation is None:
            return outputs
        return self.activation(outputs)

    def _kernel_factor(self, name, member):
        r, s = (
            ops.convert_to_numpy(v.value)[member].astype("float64")
            for v in self.scales_of(name)
        )
        return self.kernel_factor(name, r, s)

    def kernel_factor(self, name, r, s):
        """The sum of `r s^T` over the first axis, in the kernel's shape."""
        raise NotImplementedError

    def _member_config(self):
        return {
            **super()._member_config(),
            "rank": self.fast_rank,
            "fast_initializer": _fast_draws.serialized(self.fast_initializer),
            "seed": self.seed,
        }
