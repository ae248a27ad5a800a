"""Masks within the step, as fast as a backend can.

PyTorch runs operation by operation: a product in place by the bytes of the
mask needs no temporary array, and takes a tenth of the time. On a CPU the
square root of zeros takes twenty times as long as that of other numbers.
"""

import keras
from keras import ops

# Its root is too small for any `epsilon` to notice.
TINY = 1e-30

if keras.config.backend() == "torch":
    import torch

    @torch.no_grad()
    def masked_gradient(gradient, mask):
        """The gradient times the mask, in its place."""
        return gradient.mul_(mask.value)

    @torch.no_grad()
    def lift(slots):
        """Puts a tiny number where weights are pruned, until `lower`.

        Args:
            slots: List of pairs, a slot that is zero there and the mask.
        """
        for slot, mask in slots:
            if _is_on_cpu(slot):
                slot.value.add_(1 - mask.value, alpha=TINY)

    @torch.no_grad()
    def lower(slots):
        for slot, mask in slots:
            if _is_on_cpu(slot):
                slot.value.mul_(mask.value)

    def _is_on_cpu(variable):
        return variable.value.device.type == "cpu"

else:

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
        """The tensor, and `begin` where the mask is zero, whatever was there."""
        if begin or tensor.dtype != factors.dtype:
            return tf.where(factors != 0, tensor, tf.cast(begin, tensor.dtype))
        return tf.math.multiply_no_nan(tensor, factors)

else:

    def factors(mask):
        return ops.cast(mask, "bool")

    def restored(tensor, factors, begin):
        return ops.where(factors, tensor, ops.cast(begin, tensor.dtype))
