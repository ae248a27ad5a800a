"""Masks within the step, as fast as a backend can.

PyTorch runs operation by operation, and makes numbers of the bytes of a mask
first: piece by piece these stay in the cache of a CPU. There the square root of
zeros takes twenty times as long as that of other numbers.
"""

import keras
from keras import ops

# A second moment that small is as good as none: its root, 1e-17, is too small
# for any `epsilon` to notice.
TINY = 1e-34

if keras.config.backend() == "torch":
    import torch

    # Entries: a megabyte of numbers.
    PIECE = 2**18

    def owned(gradients):
        """The gradients, each in memory of its own.

        `torch.autograd.grad` gives one for all weights of a sum, and one
        number for all entries of a weight of which the sum is taken.
        """
        found, seen = [], set()
        for g in gradients:
            if g is not None:
                place = g.data_ptr()
                if place in seen or 0 in g.stride():
                    g = g.clone(memory_format=torch.contiguous_format)
                seen.add(place)
            found.append(g)
        return found

    @torch.no_grad()
    def masked_gradient(gradient, mask):
        """The gradient times the mask, in its place."""
        for some, flags in _pieces(gradient, mask.value):
            some.mul_(flags)
        return gradient

    def _pieces(tensor, mask):
        """Views of both, in pairs, of which all is made up."""
        if tensor.is_cpu and tensor.is_contiguous() and mask.is_contiguous():
            pieces = [t.view(-1).split(PIECE) for t in (tensor, mask)]
            return zip(*pieces)
        return [(tensor, mask)]

    @torch.no_grad()
    def lift(slots):
        """Has what is zero be tiny, until `lower`."""
        for slot in slots:
            if slot.value.is_cpu:
                slot.value.clamp_(min=TINY)

    @torch.no_grad()
    def lower(slots):
        for slot in slots:
            if slot.value.is_cpu:
                torch.nn.functional.threshold_(slot.value, 2.0 * TINY, 0.0)

else:

    def owned(gradients):
        """The gradients: they are not changed in place."""
        return gradients

    def masked_gradient(gradient, mask):
        gradient = ops.convert_to_tensor(gradient)
        return gradient * ops.cast(mask.value, gradient.dtype)

    def lift(slots):
        """Nothing: roots of zeros are as fast as others."""

    lower = lift


# What is not finite goes, too: no product does that, but one that knows zero,
# which TensorFlow has, where a choice takes twice as long.

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def factors(mask):
        """The mask as `restored` takes it, once for a weight and its slots."""
        return tf.cast(mask.value, "float32")

    def restored(tensor, factors, begin):
        """The tensor, and `begin` where it is pruned, whatever was there."""
        if begin or tensor.dtype != factors.dtype:
            return tf.where(factors != 0, tensor, tf.cast(begin, tensor.dtype))
        return tf.math.multiply_no_nan(tensor, factors)

else:

    def factors(mask):
        return ops.cast(mask, "bool")

    def restored(tensor, factors, begin):
        return ops.where(factors, tensor, ops.cast(begin, tensor.dtype))
