"""Batches for members: in an order of their own, or a part of each."""

import math
import sys

import keras
import numpy as np
from keras import ops

from keras_dlkit import _keras
from keras_dlkit._tree import leaves
from keras_dlkit._tree import map_leaves
from keras_dlkit.models._first_batch import are_arrays
from keras_dlkit.models._first_batch import first_batch
from keras_dlkit.models._first_batch import inputs_of
from keras_dlkit.models._first_batch import rows_of


class IndependentBatches(keras.utils.PyDataset):
    """Each member goes through all rows, in an order of its own.

    A batch is the `batch_size` rows of the first member, those of the second,
    and so on.
    """

    def __init__(
        self, data, batch_size, members, seed, shuffle, epoch=0, **kwargs
    ):
        super().__init__(**kwargs)
        self.data = data
        self.batch_size, self.members = batch_size, members
        self.seed, self.shuffle, self.epoch = seed, shuffle, epoch
        self.rows = len(keras.tree.flatten(data)[0])
        self._draw()

    def __len__(self):
        return math.ceil(self.rows / self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        rows = self.orders[:, start : start + self.batch_size].ravel()
        return map_leaves(lambda t: t[rows], self.data)

    def on_epoch_end(self):
        self.epoch += 1
        if self.shuffle:
            self._draw()

    def _draw(self):
        rng = np.random.default_rng(
            [self.seed, self.epoch if self.shuffle else 0]
        )
        self.orders = np.stack(
            [rng.permutation(self.rows) for _ in range(self.members)]
        )


def independent(arguments, members, seed):
    """The arguments of `fit`, with an order of its own for each member."""
    x, y, sample_weight = (
        arguments[name] for name in ("x", "y", "sample_weight")
    )
    check_arrays(x)
    batch_size = arguments["batch_size"] or 32
    data = map_leaves(ops.convert_to_numpy, (x, y, sample_weight))
    validation = arguments["validation_data"]
    if arguments["validation_split"] and validation is None:
        rows = len(keras.tree.flatten(data)[0])
        kept = math.floor(rows * (1 - arguments["validation_split"]))
        validation = map_leaves(lambda t: t[kept:], data)
        data = map_leaves(lambda t: t[:kept], data)
    while data[-1] is None:
        data = data[:-1]
    return {
        **arguments,
        "x": IndependentBatches(
            data,
            batch_size,
            members,
            seed,
            arguments["shuffle"],
            arguments["initial_epoch"],
        ),
        "y": None,
        "sample_weight": None,
        "batch_size": None,
        "shuffle": False,  # of the batches
        "validation_split": 0.0,
        "validation_data": validation,
        "validation_batch_size": arguments["validation_batch_size"]
        or batch_size,
    }


def check_arrays(x):
    if not are_arrays(x):
        raise ValueError(
            '`member_batches="independent"` takes arrays. Received: x of type '
            f'{type(x)}. Use "tile"; or "split" with batches that hold the '
            "rows of the first member, then those of the second, and so on."
        )


def check_split(arguments, members):
    """The arguments of `fit`, of batches that members can share evenly.

    A `tf.data.Dataset` that does not say what its batches are looks at the
    first one itself.
    """
    x, size = arguments["x"], arguments["batch_size"]
    if _keras.is_tf_data(x):
        size = _keras.tf_data_batch_size(x)
        x = _asserting(x, members) if size is None else x
    elif are_arrays(x):
        size = size or 32
    else:
        batch, x = first_batch(x)
        size = _size_of(x) if batch is None else rows_of(batch)
    check_rows(size, members)
    return {**arguments, "x": x}


def _size_of(loader):
    """What a `DataLoader`, or its `batch_sampler`, says of itself."""
    sampler = getattr(loader, "batch_sampler", None)
    sizes = [getattr(each, "batch_size", None) for each in (loader, sampler)]
    return sizes[0] or sizes[1]


def _asserting(dataset, members):
    tf = sys.modules["tensorflow"]

    def check(index, batch):
        rows = tf.shape(leaves(inputs_of(batch))[0])[0]
        fits = (index > 0) | (rows % members == 0)
        tf.debugging.Assert(fits, [_message(members, "the batch size"), rows])
        return batch

    return dataset.enumerate().map(check)


def check_rows(size, members):
    """Raises for a number of rows that members cannot share evenly."""
    if isinstance(size, int) and size % members:
        below = size - size % members
        raise ValueError(
            f"{_message(members, f'batch_size={size}')}. Take "
            f"{below or members} or {below + members}; a last batch of fewer "
            'rows is fine. "tile" takes any.'
        )


def _message(members, received):
    return (
        '`member_batches="split"` takes a batch size that is a multiple of '
        f"ensemble_size={members}. Received: {received}"
    )
