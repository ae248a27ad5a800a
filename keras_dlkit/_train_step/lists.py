"""Lists of tensors as one vector, in as few calls as a backend needs.

Entries may be `None`. PyTorch runs each operation as it comes, and the way to
it through `keras.ops` takes longer than a small tensor does; TensorFlow has one
operation for some that are two; XLA makes few operations of many by itself.
"""

import keras
from keras import ops

from keras_dlkit.ops._dtypes import as_dtype
from keras_dlkit.ops._dtypes import wide_dtype


def inner_product(xs, ys):
    """Sum of the products of all entries, in float32 or wider."""
    products = [
        _dot(x, y) for x, y in zip(xs, ys) if x is not None and y is not None
    ]
    return sum(products[1:], products[0]) if products else ops.zeros(())


def norm(xs):
    """The Euclidean norm of all entries, in float32 or wider."""
    return ops.sqrt(inner_product(xs, xs))


def products(xs, factor):
    """`factor * x` of the dtype of `x`; 0 for a factor of 0, whatever x is.

    Also NaN and infinity: so a vector is left out that is not finite.
    """
    none = factor == 0
    return [None if x is None else _product(x, factor, none) for x in xs]


def sums(xs, ys, factor=1.0):
    """`x + factor * y` of the dtype of `x`; `x` where there is no `y`."""
    return [
        x if x is None or y is None else _sum(x, y, factor)
        for x, y in zip(xs, ys)
    ]


def assign_where(condition, variables, values, share=None):
    """Writes values, those that are not `None`, if the condition holds.

    With `share`, a scalar tensor, the variable goes so far of the way there.
    If it does not hold it stays, whatever the values are, NaN too.
    """
    pairs = [p for p in zip(variables, values) if p[1] is not None]
    _assign_where(condition, pairs, share)


if keras.config.backend() == "torch":
    import torch

    def _dot(x, y):
        # Not `torch.dot`, which adds a million entries up with too few digits.
        return torch.sum(_wide(x) * _wide(y))

    def _wide(x):
        wide = torch.float32, torch.float64
        return x if x.dtype in wide else x.to(torch.float32)

    def _product(x, factor, none):
        return (x * factor.to(x.dtype)).masked_fill_(none, 0.0)

    def _sum(x, y, factor):
        if isinstance(factor, float):
            return torch.add(x, y.to(x.dtype), alpha=factor)
        return torch.addcmul(x, y.to(x.dtype), factor.to(x.dtype))

    @torch.no_grad()
    def _assign_where(condition, pairs, share):
        share = torch.where(condition, 1.0 if share is None else share, 0.0)
        skipped = ~condition
        for variable, value in pairs:
            old = variable.value
            value = value.to(old.dtype).masked_fill(skipped, 0.0)
            old.lerp_(value, share.to(old.dtype))

else:

    def _dot(x, y):
        wide = wide_dtype(x, y)
        if x is y:
            return _square(as_dtype(x, wide))
        return ops.sum(as_dtype(x, wide) * as_dtype(y, wide))

    def _product(x, factor, none):
        return _times_or_zero(x, as_dtype(factor, x.dtype), none)

    def _sum(x, y, factor):
        if isinstance(factor, float):
            return x + (y if factor == 1.0 else factor * y)
        return x + as_dtype(factor, x.dtype) * y

    def _assign_where(condition, pairs, share):
        for variable, value in pairs:
            old = ops.convert_to_tensor(variable)
            new = as_dtype(value, old.dtype)
            if share is not None:
                new = old + as_dtype(share, old.dtype) * (new - old)
            variable.assign(ops.where(condition, new, old))

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        def _times_or_zero(x, factor, none):
            del none
            return tf.math.multiply_no_nan(x, factor)

        def _square(x):
            return 2.0 * tf.nn.l2_loss(x)

    else:

        def _times_or_zero(x, factor, none):
            return ops.where(none, 0.0, x * factor)

        def _square(x):
            return ops.sum(x * x)
