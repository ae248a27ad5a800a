"""Weights that are read before a step writes them."""

import keras

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def before_gradients(loss):
        """The loss, such that no gradient is there before its value is.

        A weight under `stop_gradient` is ordered before its update by a
        control edge alone, which TensorFlow's dependency optimizer drops:
        while the gradients pass through one `IdentityN` there is another way
        from the one to the other, and later that is taken out.
        """
        # 1, also for NaN, and no optimizer of graphs knows it.
        is_there = tf.logical_not(tf.abs(loss) < 0)
        return loss * tf.cast(is_there, loss.dtype)

else:

    def before_gradients(loss):
        """What is read is what there was: nothing runs in another order."""
        return loss
