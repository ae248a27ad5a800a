"""Rows and outputs of all members of an ensemble."""

import keras
from keras import ops

from keras_dlkit import _keras


class Members(keras.Model):
    """The network of an ensemble, with the outputs of all members."""

    def __init__(self, ensemble):
        super().__init__(
            dtype=ensemble.dtype_policy,
            autocast=False,
            name=f"members_of_{ensemble.name}",
        )
        self.network = ensemble.network
        vars(self)["ensemble"] = ensemble
        self.built = True

    def call(self, inputs):
        return self.ensemble.of_members(inputs)


def structure(network, side):
    """The symbolic `"input"` or `"output"` of a network."""
    if isinstance(network, keras.Sequential):
        return getattr(network, f"{side}s")[0]
    return getattr(network, side)


def tiled(t, members):
    def tile(t):
        return ops.tile(t, (members, *(1,) * (len(t.shape) - 1)))

    return with_mask(tile, t)


def with_mask(function, t):
    """`function` of a tensor, and of the mask that it carries."""
    result = function(t)
    mask = _keras.get_mask(t)
    if mask is not None:
        _keras.set_mask(result, function(mask))
    return result
