"""Where the pixels of images, sequences and volumes are."""

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit.layers._inputs import is_integer
from keras_dlkit.layers._inputs import map_inputs
from keras_dlkit.layers._inputs import named
from keras_dlkit.ops._boxes import as_row


class Space:
    """The spatial axes of a tensor of shape `(batch, *sizes, channels)`."""

    def __init__(self, x, path, data_format):
        rank = len(x.shape)
        if not 3 <= rank <= 5:
            raise ValueError(
                "Boxes need inputs with space in them: (batch, time, "
                "channels), (batch, height, width, channels) or volumes, of "
                f"rank 3 to 5. Received: {named('input', path)} of shape "
                f"{tuple(x.shape)}. Say which entries of `x` these are with "
                "`inputs=[...]`; rows of a table can be mixed by `MixUp`."
            )
        self.rank = rank - 2
        self.channels_first = data_format == "channels_first"
        self.axis = 2 if self.channels_first else 1
        self.sizes = ops.shape(x)[self.axis : self.axis + self.rank]
        # None where the size is not known.
        self.known = tuple(x.shape[self.axis : self.axis + self.rank])

    def same(self, sizes):
        return all(
            a is None or b is None or a == b for a, b in zip(self.known, sizes)
        )

    def dense_axis(self, y, path=()):
        """The first spatial axis of targets a pixel, else `None`.

        These have the rank of the images, or one less. Of sequences the latter
        is rank 2, where integers are a value a time step, and floats a row of
        values a sample.
        """
        rank = len(y.shape)
        if rank <= self.rank or (
            rank == 2 and (not is_integer(y) or y.shape[1] == 1)
        ):
            return None
        # Channels where those of the images are, or last, as one-hot has them.
        axes = {self.rank + 1: [1], self.rank + 2: [self.axis, 1]}
        for axis in axes.get(rank, []):
            if self.same(y.shape[axis : axis + self.rank]):
                return axis
        raise ValueError(
            "Targets a pixel must have the spatial sizes of the inputs, for a "
            "box is pasted at the same place of both. Received: "
            f"{named('target', path)} of shape {tuple(y.shape)}, and inputs of "
            f"sizes {self.known}. Resize one of the two."
        )

    def fitted(self, y, axis):
        """Targets a pixel; where sizes are found out later, an error then."""
        if None not in (*y.shape[axis : axis + self.rank], *self.known):
            return y
        shape = list(ops.shape(y))
        shape[axis : axis + self.rank] = self.sizes
        return ops.broadcast_to(y, shape)

    def spread(self, weights, path=()):
        """Weights a sample as weights a pixel, `(batch, *sizes)`."""
        shape = weights.shape
        if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
            weights = ops.reshape(weights, (-1,) + (1,) * self.rank)
        elif len(shape) == self.rank + 2 and shape[-1] == 1:
            weights = ops.squeeze(weights, axis=-1)
        sizes = weights.shape[1:]
        if all(size == 1 for size in sizes):
            sizes = self.known
            weights = ops.broadcast_to(
                weights, (ops.shape(weights)[0], *self.sizes)
            )
        if len(sizes) == self.rank and self.same(sizes):
            return weights
        raise ValueError(
            "`sample_weight` of targets a pixel must be of shape (batch,), "
            "(batch, 1, ...) or (batch, *sizes). Received: "
            f"{named('weight', path)} of shape {tuple(shape)}, and inputs of "
            f"sizes {self.known}"
        )


def space_of(x, inputs, data_format):
    """The space that all images among the inputs have in common."""
    spaces = []

    def look(leaf, path):
        spaces.append((path, Space(leaf, path, data_format)))
        return leaf

    map_inputs(look, x, inputs)
    (_, first), *others = spaces
    for path, space in others:
        if space.rank != first.rank or not first.same(space.known):
            raise ValueError(
                "A box lies at the same place of all inputs, which must have "
                "the same spatial sizes. Received: sizes "
                f"{first.known} and, at {named('input', path)}, "
                f"{space.known}. Say which entries of `x` to mix with "
                "`inputs=[...]`."
            )
    return first


def as_data_format(data_format):
    """The argument of a layer, or what `keras.json` says."""
    data_format = data_format or keras.config.image_data_format()
    return _checks.check_one_of(
        "data_format", data_format, ("channels_last", "channels_first")
    )


def check_model(model, inputs, data_format):
    """Raises for a model whose one input has no space in it."""
    if not model.built or inputs is not None:
        return
    tensors = getattr(model, "inputs", None) or []
    if len(tensors) == 1:
        Space(tensors[0], (), data_format)


def pixels(places, sizes):
    """Places in `[0, 1)`, of shape `(batch, d or more)`, as pixels."""
    sizes = as_row(sizes, "float32")
    places = ops.convert_to_tensor(places)[:, : sizes.shape[0]] * sizes
    # A product may be rounded up to the size itself.
    return ops.cast(ops.minimum(ops.floor(places), sizes - 1), "int32")
