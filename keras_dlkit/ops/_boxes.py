"""Boxes in sequences, images and volumes, and what lies within them.

A box is a row of integers, the starts along each spatial axis, then the ends,
half-open: `(top, left, bottom, right)` in an image.
"""

import functools
import math

from keras import ops

from keras_dlkit.ops._in_place import changes_in_place

# Values in a row of a batch, from where on PyTorch on a CPU is faster row by
# row: measured between 28 x 28 x 1 (half as fast) and 64 x 64 x 3 (thrice).
LARGE = 4096


def boxes_around(centers, lengths, sizes):
    """Boxes of the given lengths, cut off at the borders.

    Args:
        centers: int32 tensor of shape `(batch, d)`, within `sizes`.
        lengths: int32 tensor that broadcasts to it. Nothing is lost of an odd
            one: of 3, one lies before the centre and one after it.
        sizes: `d` integers, or scalar integer tensors.

    Returns:
        int32 tensor of shape `(batch, 2 * d)`.
    """
    starts = centers - lengths // 2
    ends = ops.minimum(starts + lengths, as_row(sizes, "int32"))
    return ops.concatenate([ops.maximum(starts, 0), ends], axis=-1)


def as_row(sizes, dtype):
    """Sizes, known or not, as a tensor of shape `(d,)`."""
    return ops.stack([ops.cast(size, dtype) for size in sizes])


def inside(boxes, sizes, channels=1):
    """Boolean tensor of shape `(batch, *sizes)`: what lies in the box.

    With `channels`, the last axis is that of size times channels: what comes
    of merging the two, so that a choice by it needs no broadcast.
    """
    rank = len(sizes)
    mask = None
    for axis, size in enumerate(sizes):
        places = ops.arange(size, dtype="int32")
        if axis == rank - 1 and channels != 1:
            places = ops.arange(size * channels, dtype="int32") // channels
        along = ops.logical_and(
            places >= boxes[:, axis, None], places < boxes[:, rank + axis, None]
        )
        for position in range(rank):
            if position != axis:
                along = ops.expand_dims(along, position + 1)
        mask = along if mask is None else ops.logical_and(mask, along)
    return mask


def inside_any(boxes, sizes, channels=1):
    """The same for `(batch, count, 2 * d)`: what lies in one box at least."""
    masks = [
        inside(boxes[:, index], sizes, channels)
        for index in range(boxes.shape[1])
    ]
    return functools.reduce(ops.logical_or, masks)


def choose(boxes, within, without, axis=1, rows=None):
    """`within` in the boxes of each row, `without` elsewhere.

    Args:
        boxes: Integer tensor of shape `(batch or 1, count, 2 * d)`.
        within, without: Tensors of one shape, `(batch, ..., *sizes, ...)`.
        axis: Integer. The first of the `d` spatial axes.
        rows: Integer tensor of shape `(batch,)`, the row of `within` for each
            of `without`; `None` for the same.
    """
    if _has_boxes_at_hand(without):
        return _moved(boxes, within, without, axis, rows)
    if rows is not None:
        within = ops.take(within, rows, axis=0)
    end = axis + boxes.shape[-1] // 2
    shape = ops.shape(without)
    sizes, channels = shape[axis:end], shape[end:]
    if axis == 1 and channels and all(isinstance(c, int) for c in channels):
        # Last spatial axis and channels as one axis: with a mask of the same
        # shape the choice is one plain pass over memory.
        count = math.prod(channels)
        merged = (*shape[: end - 1], sizes[-1] * count)
        mask = inside_any(boxes, sizes, count)
        chosen = ops.where(
            mask, ops.reshape(within, merged), ops.reshape(without, merged)
        )
        return ops.reshape(chosen, shape)
    mask = inside_any(boxes, sizes)
    for _ in range(axis - 1):
        mask = ops.expand_dims(mask, 1)
    for _ in channels:
        mask = ops.expand_dims(mask, -1)
    return ops.where(mask, within, without)


def _has_boxes_at_hand(tensor):
    """Whether numbers can be read at no cost, and moving few of them pays."""
    return (
        changes_in_place(tensor)
        and tensor.device.type == "cpu"
        and tensor.numel() >= LARGE * max(1, len(tensor))
    )


def _moved(boxes, within, without, axis, rows):
    """`choose` of few passes over memory: what lies in the boxes is moved."""
    rank = boxes.shape[-1] // 2
    chosen = without.clone()
    boxes = boxes.clamp(min=0).expand(len(chosen), -1, -1).tolist()
    rows = range(len(chosen)) if rows is None else rows.tolist()
    for row, (source, own) in enumerate(zip(rows, boxes)):
        for box in own:
            window = (slice(None),) * (axis - 1)
            window += tuple(map(slice, box[:rank], box[rank:]))
            chosen[row][window] = within[source][window]
    return chosen
