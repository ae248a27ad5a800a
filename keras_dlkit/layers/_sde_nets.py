"""The two nets of an `SDEBlock`: how they are called and checked."""

import inspect

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit import _isolated
from keras_dlkit import _keras

SHAPES = ("sample", "channel", "element")


def masked(x, mask):
    """A state, with the mask that its nets are to see beside it."""
    if mask is not None:
        _keras.set_mask(x, mask)
    return x


class Drift:
    """The drift net, which is given the time if it takes it."""

    def __init__(self, layer):
        _check_layer("drift", layer)
        self.layer = layer

    def __call__(self, time, x):
        if self._has_two_inputs:
            column = ops.ones((ops.shape(x)[0], 1), dtype=x.dtype)
            return self.layer([x, time * column])
        name = self._time_argument
        return self.layer(x, **({name: time} if name else {}))

    @property
    def _has_two_inputs(self):
        inputs = getattr(self.layer, "inputs", None)
        return isinstance(inputs, (list, tuple)) and len(inputs) == 2

    @property
    def _time_argument(self):
        names = inspect.signature(self.layer.call).parameters
        return next((name for name in ("time", "t") if name in names), None)

    def build(self, shape):
        x = keras.KerasTensor(shape, dtype="float32")
        if self._has_two_inputs:
            time = keras.KerasTensor((shape[0], 1), dtype="float32")
            outputs = self.layer([x, time])
        elif self._time_argument:
            time = keras.KerasTensor((), dtype="float32")
            outputs = self.layer(x, **{self._time_argument: time})
        else:
            outputs = self.layer(x)
        found = _shape_of(outputs)
        if found != tuple(shape):
            raise ValueError(
                "`drift` must keep the shape of the state, as its outputs are "
                f"added to it. Received: a drift {self.layer.name!r} from "
                f"{tuple(shape)} to {found}"
            )


class Diffusion:
    """The diffusion net, as a factor of the state."""

    def __init__(self, layer, shape):
        _check_layer("diffusion", layer)
        self.layer = layer
        self.shape = _checks.check_one_of("diffusion_shape", shape, SHAPES)

    def __call__(self, x):
        outputs = self.layer(x)
        if self.shape == "element":
            return outputs
        return ops.reshape(outputs, (-1, *self._factor(x.shape)[1:]))

    def build(self, shape):
        x = keras.KerasTensor(shape, dtype="float32")
        found = _shape_of(self.layer(x))
        allowed = self._allowed(tuple(shape))
        if found not in allowed:
            raise ValueError(
                f"`diffusion` must give {_MEANING[self.shape]} with "
                f"diffusion_shape={self.shape!r}: for a state of shape "
                f"{tuple(shape)} outputs of shape "
                f"{' or '.join(map(str, allowed))}. Received: a diffusion "
                f"{self.layer.name!r} with outputs of shape {found}"
            )

    def _factor(self, shape):
        """The shape that broadcasts to the state."""
        factor = [shape[0]] + [1] * (len(shape) - 1)
        if self.shape == "channel":
            axis = _channel_axis(len(shape))
            factor[axis] = shape[axis]
        return tuple(factor)

    def _allowed(self, shape):
        if self.shape == "element":
            return [shape]
        short = (shape[0],)
        if self.shape == "channel":
            short = (shape[0], shape[_channel_axis(len(shape))])
        pair = [(shape[0], 1)] if self.shape == "sample" else []
        return list(dict.fromkeys([*pair, short, self._factor(shape)]))


_MEANING = {
    "sample": "one number a sample",
    "channel": "one number a channel",
    "element": "one number an element",
}


def _channel_axis(rank):
    first = keras.config.image_data_format() == "channels_first"
    return 1 if first and rank > 2 else rank - 1


def _check_layer(name, layer):
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(
            f"`{name}` must be a `keras.layers.Layer`. "
            f"Received: {name}={layer!r} of type {type(layer)}"
        )


def _shape_of(outputs):
    return tuple(getattr(outputs, "shape", ())) or None


class Direct:
    """Nets that are called as they are: what they change, they change."""

    start = ()

    def call(self, function, state):
        return function(), state

    def finish(self, layer, state):
        pass


class Carried:
    """Nets in a compiled loop, which carries what they change.

    An `assign` in the body of a loop would be lost, or leak.
    """

    def __init__(self, nets):
        self.nets = nets
        frozen = _isolated.frozen_values
        self.given = [
            value
            for net, is_frozen in nets
            for value in (frozen if is_frozen else _isolated.values)(net)
        ]
        self.variables = [v for net, _ in nets for v in net.variables]
        self.changing = [
            i for i, v in enumerate(self.variables) if not v.trainable
        ]
        self.adds_losses = False

    @property
    def start(self):
        states = [self.given[i] for i in self.changing]
        return [*states, ops.zeros((), dtype="float32")]

    def call(self, function, state):
        *states, loss = state
        given = list(self.given)
        for index, value in zip(self.changing, states):
            given[index] = value
        results, _, after, losses = _isolated.run(
            self.variables, given, function
        )
        for extra in losses:
            self.adds_losses = True
            loss = loss + ops.cast(extra, "float32")
        return results, [*(after[i] for i in self.changing), loss]

    def finish(self, layer, state):
        """Writes down what the loop carried."""
        *states, loss = state
        for index, value in zip(self.changing, states):
            self.variables[index].assign(value)
        if self.adds_losses:
            layer.add_loss(loss)
