"""What each kind of layer does to the channels, the last axis.

Of a channel it is known whether it is a constant (NaN if not), and whether
anything depends on it. Each rule says how the two pass a layer, and which
weights are left when channels are taken away.
"""

import keras
import numpy as np
from keras import layers
from keras import ops

from keras_dlkit.sparsity._encoding import as_array

MATRICES = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
# Functions of each number by itself; what they make of a constant is asked.
CALLED = (
    layers.Activation,
    layers.BatchNormalization,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
)
# A constant stays what it is.
IDENTITIES = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    layers.Identity,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
)
# A zero stays a zero; of other constants no more than that is said.
ZEROS = (
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)
MERGES = {
    "Add": np.add,
    "Subtract": np.subtract,
    "Multiply": np.multiply,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Average": lambda a, b: a + b,  # of two constants, halved in `constants`
}
ELEMENTWISE = frozenset(
    "linear relu relu6 leaky_relu elu selu celu gelu sigmoid hard_sigmoid tanh "
    "hard_tanh softplus softsign silu hard_silu mish exponential log_sigmoid "
    "tanh_shrink soft_shrink hard_shrink squareplus sparse_plus "
    "sparse_sigmoid threshold".split()
)


def rule_for(node, shapes):
    """The rule of a call, or `None` for a layer that is not supported."""
    layer = node.layer
    ins = [shapes[i] for i in node.inputs]
    outs = [shapes[i] for i in node.outputs]
    if not node.plain or not ins or len(outs) != 1:
        return _kept(layer)
    if getattr(layer, "data_format", None) == "channels_first":
        return _kept(layer)
    kind = type(layer)
    if kind in MATRICES and _is_plain_matrix(layer):
        return Matrix(layer)
    if kind in DEPTHWISE and layer.depth_multiplier == 1:
        return Depthwise(layer) if is_elementwise(layer.activation) else None
    if kind in CALLED and _acts_on_channels(layer, ins[0]):
        return Called(layer)
    if kind in IDENTITIES and _is_of_any_size(layer):
        return Each(layer)
    if kind in ZEROS:
        return Zeros(layer)
    if kind is layers.Flatten and len(ins[0]) > 1 and None not in ins[0][1:]:
        return Flat(layer)
    if kind is layers.Concatenate and layer.axis in (-1, len(outs[0]) - 1):
        return Concatenated(layer)
    of_keras = kind.__module__.startswith("keras.")
    if of_keras and kind.__name__ in MERGES and _alike(ins + outs):
        return Merge(layer)
    return _kept(layer)


def is_elementwise(activation):
    name = getattr(activation, "__name__", None)
    own = getattr(keras.activations, str(name), None)
    return name in ELEMENTWISE and activation is own


def _is_plain_matrix(layer):
    return (
        getattr(layer, "groups", 1) == 1
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
    )


def _acts_on_channels(layer, shape):
    if isinstance(layer, layers.BatchNormalization):
        return layer.axis in (-1, len(shape) - 1)
    if isinstance(layer, layers.Activation):
        return is_elementwise(layer.activation)
    return True


def _is_of_any_size(layer):
    """A dropout of one draw for several channels may name their number."""
    noise_shape = getattr(layer, "noise_shape", None)
    return noise_shape is None or noise_shape[-1] in (None, 1)


def _alike(shapes):
    return len({(len(s), s[-1:]) for s in shapes}) == 1


def _kept(layer):
    """Stock layers without kernels get and give all that they did."""
    if not isinstance(layer, layers.Layer):
        return Kept(layer)
    stock = type(layer).__module__.startswith("keras.")
    inside = isinstance(layer, (keras.Model, layers.Wrapper))
    return Kept(layer) if stock and not inside and not layer.weights else None


class Kept:
    """Needs all channels, and gives all."""

    # Whether a channel of the output is one of the input.
    passes = False

    def __init__(self, layer):
        self.layer = layer

    def constants(self, ins, size):
        """Of the output, of `size` channels, by those of the inputs."""
        return np.full(size, np.nan)

    def needs(self, ins, out, needed):
        """Which channels of each input matter for those `needed`."""
        return [np.ones(len(c), bool) for c in ins]

    def unfoldable(self, constants, calls):
        """Inputs whose constants cannot be taken out."""
        return np.ones(len(constants), bool)

    def couple(self, ins, out):
        """Channels to keep, grown until they fit; in place."""
        for keep in (*ins, out):
            keep[:] = True

    def config(self, keep_in, keep_out, constants):
        return self.layer.get_config()

    def weights(self, keep_in, keep_out, constants):
        return [as_array(w) for w in self.layer.weights]


class Each(Kept):
    """Channel by channel; a constant stays."""

    passes = True

    def constants(self, ins, size):
        return ins[0].copy()

    def needs(self, ins, out, needed):
        return [needed & np.isnan(out) for _ in ins]

    def unfoldable(self, constants, calls):
        return np.zeros(len(constants), bool)

    def couple(self, ins, out):
        out |= np.logical_or.reduce(ins)
        for keep in ins:
            keep |= out

    def weights(self, keep_in, keep_out, constants):
        return [as_array(w)[..., keep_out] for w in self.layer.weights]


class Zeros(Each):
    def constants(self, ins, size):
        return np.where(ins[0] == 0, 0.0, np.nan)


class Called(Each):
    def constants(self, ins, size):
        outs = np.full(size, np.nan)
        known = ~np.isnan(ins[0])
        if known.any():
            outs[known] = self._called(np.nan_to_num(ins[0]))[known]
        layer = self.layer
        if isinstance(layer, layers.BatchNormalization) and layer.scale:
            shift = as_array(layer.beta) if layer.center else 0.0
            dead = as_array(layer.gamma) == 0
            outs = np.where(dead, shift, outs)
        return outs.astype("float64")

    def _called(self, values):
        shape = (1,) * (self._rank() - 1) + (-1,)
        x = ops.convert_to_tensor(values.reshape(shape), dtype="float32")
        y = ops.cast(self.layer(x, training=False), "float32")
        return ops.convert_to_numpy(y).reshape(-1)

    def _rank(self):
        spec = getattr(self.layer, "input_spec", None)
        return (getattr(spec, "ndim", None) or 2) if spec else 2


class Depthwise(Each):
    def constants(self, ins, size):
        layer = self.layer
        kernel = as_array(layer.kernel).astype("float64")[..., 0]
        sums = kernel.reshape(-1, size).sum(0)
        dead = (kernel == 0).reshape(-1, size).all(0)
        bias = as_array(layer.bias) if layer.use_bias else np.zeros(size)
        inputs = np.where(dead, 0.0, ins[0])
        if _pads(layer):
            inputs[inputs != 0] = np.nan
        return _activated(layer, inputs * sums + bias.astype("float64"))

    def weights(self, keep_in, keep_out, constants):
        kernel = as_array(self.layer.kernel)[..., keep_in, :]
        rest = [as_array(w)[keep_out] for w in self.layer.weights[1:]]
        return [kernel, *rest]


class Merge(Each):
    def constants(self, ins, size):
        kind = type(self.layer).__name__
        total = ins[0]
        for values in ins[1:]:
            total = MERGES[kind](total, values)
        if kind == "Multiply":
            zero = np.logical_or.reduce([values == 0 for values in ins])
            total = np.where(zero, 0.0, total)
        return total / len(ins) if kind == "Average" else total


class Concatenated(Kept):
    passes = True

    def constants(self, ins, size):
        return np.concatenate(ins)

    def needs(self, ins, out, needed):
        return self._parts(ins, needed)

    def unfoldable(self, constants, calls):
        return np.zeros(len(constants), bool)

    def couple(self, ins, out):
        for keep, part in zip(ins, self._parts(ins, out)):
            part |= keep
            keep |= part

    def _parts(self, ins, out):
        return np.split(out, np.cumsum([len(keep) for keep in ins])[:-1])


class Flat(Kept):
    """Positions by channels, the channels last."""

    passes = True

    def constants(self, ins, size):
        return np.tile(ins[0], size // len(ins[0]))

    def needs(self, ins, out, needed):
        return [needed.reshape(-1, len(ins[0])).any(0)]

    def unfoldable(self, constants, calls):
        return np.zeros(len(constants), bool)

    def couple(self, ins, out):
        ins[0] |= out.reshape(-1, len(ins[0])).any(0)
        out |= np.tile(ins[0], len(out) // len(ins[0]))


class Matrix(Kept):
    """A kernel of `(..., channels in, channels out)`, and a bias."""

    def __init__(self, layer):
        super().__init__(layer)
        kernel = as_array(layer.kernel).astype("float64")
        self.sums = kernel.reshape(-1, *kernel.shape[-2:]).sum(0)
        self.live = (kernel != 0).reshape(-1, *kernel.shape[-2:]).any(0)
        size = kernel.shape[-1]
        self.bias = np.zeros(size)
        if layer.use_bias:
            self.bias = as_array(layer.bias).astype("float64")

    def constants(self, ins, size):
        if not is_elementwise(self.layer.activation):
            return np.full(size, np.nan)
        values = np.nan_to_num(ins[0])
        moving = np.isnan(ins[0])
        if _pads(self.layer):
            moving |= values != 0
        outs = np.where(
            self.live[moving].any(0), np.nan, self.bias + values @ self.sums
        )
        return _activated(self.layer, outs)

    def needs(self, ins, out, needed):
        if not is_elementwise(self.layer.activation):
            needed = np.ones(len(out), bool)
        return [self.live[:, needed].any(1)]

    def unfoldable(self, constants, calls):
        different = np.nan_to_num(constants) != 0
        if calls == 1 and not _pads(self.layer):
            different[:] = False
        return different

    def couple(self, ins, out):
        if not is_elementwise(self.layer.activation):
            out[:] = True

    def config(self, keep_in, keep_out, constants):
        config = self.layer.get_config()
        size = "units" if isinstance(self.layer, layers.Dense) else "filters"
        config[size] = int(keep_out.sum())
        config["use_bias"] = self.layer.use_bias or bool(
            self._folded(keep_in, constants)[keep_out].any()
        )
        return config

    def weights(self, keep_in, keep_out, constants):
        kernel = as_array(self.layer.kernel)[..., keep_in, :][..., keep_out]
        bias = self.bias + self._folded(keep_in, constants)
        if self.config(keep_in, keep_out, constants)["use_bias"]:
            return [kernel, bias[keep_out]]
        return [kernel]

    def _folded(self, keep_in, constants):
        """What the channels that go added to each output."""
        gone = np.where(keep_in, 0.0, np.nan_to_num(constants))
        return gone @ self.sums


def _activated(layer, values):
    known = ~np.isnan(values)
    if known.any():
        x = ops.convert_to_tensor(values[known], dtype="float32")
        values[known] = ops.convert_to_numpy(layer.activation(x))
    return values


def _pads(layer):
    """Whether zeros are put around what it gets."""
    padding = getattr(layer, "padding", "valid")
    return padding != "valid" and set(layer.kernel_size) != {1}


def has_weights(layer):
    return isinstance(layer, layers.Layer) and bool(layer.weights)
