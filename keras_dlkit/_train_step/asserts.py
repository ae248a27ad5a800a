"""What the values of a batch can say, where a compiled step can raise."""

import keras

if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def is_traced():
        """Whether what is made now is lost if the step fails."""
        return tf.inside_function()

    def require(condition, message, value=None):
        """Raises, with a message, unless a function of tensors holds.

        In a graph before the weights change, and before the `value` that is
        returned is there; XLA leaves it out.
        """
        holds = condition()
        if not tf.is_tensor(holds):  # one of Keras, without a value
            return value
        check = tf.debugging.Assert(holds, [message])
        if value is None or check is None:
            return value
        with tf.control_dependencies([check]):
            return tf.identity(value)

else:

    def is_traced():
        """Whether what is made now is lost if the step fails."""
        return False

    def require(condition, message, value=None):
        """Elsewhere a compiled step cannot raise."""
        del condition, message
        return value
