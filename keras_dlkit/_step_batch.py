"""The batch of a training step, and what travels with it.

What a part drew is known where the batch is changed, and needed in the forward
pass and by the metrics. It travels within `x` and `y`: nothing is stored that
would leak out of a compiled step, and both passes of SAM see the same.
"""

import functools
from typing import Any
from typing import NamedTuple

import keras

from keras_dlkit._tree import map_leaves
from keras_dlkit.layers._targets import as_array
from keras_dlkit.layers.batch_part import common_batch_size


class Inputs(NamedTuple):
    """Inputs, with a draw for each name in `mixes_at` of the parts."""

    x: Any
    draws: list


class Targets(NamedTuple):
    """Targets of the loss, and those of the metrics."""

    y: Any
    of_metrics: Any


def check_targets(parts, y):
    """Raises for targets as arrays or tensors that a part cannot take."""
    if y is not None and parts:
        y = map_leaves(as_array, y)
        for part in parts:
            part.check_targets(y)


def change(parts, data, training):
    """Runs the parts over `(x, y, sample_weight)`, in their order."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    of_metrics, draws = y, []
    for part in parts:
        part.check_labels(y)
        y = part.encode(y)
        if not training:
            continue
        x, y, sample_weight = part.prepare(x, y, sample_weight)
        rows = common_batch_size((x, y, sample_weight))
        draw = part.draw(rows, part.seed_generator)
        if _has_two_targets(parts, y):
            of_metrics = part.metric_targets(x, of_metrics, sample_weight, draw)
        draws += part.hidden_draws(draw)
        x, y, sample_weight = part.apply(x, y, sample_weight, draw)
    if training and _has_two_targets(parts, y):
        y = Targets(y, of_metrics)
    return Inputs(x, draws) if draws else x, y, sample_weight


def _has_two_targets(parts, y):
    return y is not None and any(part.dominant_metrics for part in parts)


def plain_inputs(x):
    return x.x if isinstance(x, Inputs) else x


def loss_targets(y):
    return y.y if isinstance(y, Targets) else y


def metric_targets(y):
    return y.of_metrics if isinstance(y, Targets) else y


def check(parts, x, y, sample_weight):
    """Raises what the parts would, without drawing and changing anything."""
    batch = plain_inputs(x), loss_targets(y), sample_weight
    for part in parts:
        x, y, sample_weight = batch
        common_batch_size(batch)
        batch = part.prepare(x, part.encode(y), sample_weight)


def explained(method):
    """A method of `Attached`, with the errors of parts before those of Keras.

    Keras builds losses and metrics on a batch before the first step, in which
    a part would say what is wrong with it.
    """

    @functools.wraps(method)
    def call(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        try:
            return method(self, x, y, y_pred, sample_weight, **kwargs)
        except Exception:
            check(self.batch_parts, x, y, sample_weight)
            raise

    return call
