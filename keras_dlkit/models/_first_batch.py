"""What the first batch of a `fit` is like, before the first step."""

import inspect
import itertools

import keras

from keras_dlkit import _keras
from keras_dlkit._tree import leaves


def first_batch(data):
    """The first batch of the `x` of `fit`, or what it is like, and `x` again.

    A generator is asked for it, and gets it back. Of a `tf.data.Dataset` it is
    the structure of shapes and dtypes, for a second iterator would shuffle
    anew; of arrays, all rows. `None` where it cannot be had: of a
    `DataLoader`, which may have workers to start.
    """
    if inspect.isgenerator(data):
        first = list(itertools.islice(data, 1))
        # A generator again, which does not close that one when it is closed.
        chained = (batch for batch in itertools.chain(first, data))
        return (first[0] if first else None), chained
    if isinstance(data, keras.utils.PyDataset):
        return data[0], data
    if _keras.is_tf_data(data):
        return data.element_spec, data
    return ((data,) if are_arrays(data) else None), data


def inputs_of(batch):
    return keras.utils.unpack_x_y_sample_weight(batch)[0]


def rows_of(batch):
    return len(leaves(inputs_of(batch))[0])


def are_arrays(x):
    return x is not None and all(
        hasattr(t, "shape") and hasattr(t, "__getitem__")
        for t in keras.tree.flatten(x)
    )
