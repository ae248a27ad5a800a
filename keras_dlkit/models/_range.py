"""Whether a net gives numbers between 0 and 1, found before it is trained."""

import keras
import numpy as np
from keras import ops

WITHIN = ("sigmoid", "hard_sigmoid")
# A softmax of one number is 1, whatever it is; of more they cannot all be 0.
BEYOND = tuple(
    getattr(keras.layers, name)
    for name in ("ELU", "LeakyReLU", "PReLU", "ReLU", "Softmax")
)
# States of a net that is trained may be large: small weights do not hide it.
SCALES = (1.0, 1e4)


def check_activation(diffusion):
    """Raises for a last activation that leaves the interval from 0 to 1."""
    last = _last(diffusion)
    if isinstance(last, BEYOND):
        _refuse(diffusion, f"a last layer {last.name!r} of {type(last)}")
    activation = getattr(last, "activation", None)
    name = getattr(activation, "__name__", "")
    known = getattr(keras.activations, name, None) is activation
    if activation is not None and known and name not in WITHIN:
        _refuse(diffusion, f"a last layer with the activation {name!r}")


def check_values(diffusion, shape):
    """Raises for a built net that leaves it on random states."""
    if None in shape[1:]:
        return
    states = np.random.default_rng(0).normal(size=(32, *shape[1:]))
    for scale in SCALES:
        values = ops.convert_to_numpy(
            diffusion(
                ops.convert_to_tensor(scale * states, "float32"),
                training=False,
            )
        ).astype("float32")
        if scale > 1:  # half precision may overflow on the way
            values = np.nan_to_num(values, nan=0.5)
        if not (values.min() >= 0 and values.max() <= 1):
            _refuse(
                diffusion,
                f"values from {values.min():.3g} to {values.max():.3g} for "
                f"random states of deviation {scale:g}",
            )


def _last(layer):
    """The layer that makes the outputs, as far as that can be known."""
    while getattr(layer, "layers", None):
        outputs = getattr(layer, "outputs", None)
        makers = [
            inner
            for inner in layer.layers
            if outputs and _makes(inner, outputs[0])
        ]
        layer = makers[0] if makers else layer.layers[-1]
    return layer


def _makes(layer, output):
    try:
        made = keras.tree.flatten(layer.output)
    except (AttributeError, ValueError):  # called several times, or never
        return False
    return any(tensor is output for tensor in made)


def _refuse(diffusion, received):
    raise ValueError(
        "`diffusion` must give numbers between 0 and 1: it learns to tell "
        "known from unknown inputs. End it with a sigmoid. "
        f"Received: {diffusion.name!r} with {received}"
    )
