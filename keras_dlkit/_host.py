"""Weights on the host."""

import keras
import numpy as np
from keras import ops


def view(tensor):
    """The values as a NumPy array to be read, and to be dropped soon.

    No copy where the tensor lies in the memory of the host: Keras makes one
    or two, each a pass over all weights.
    """
    if isinstance(tensor, np.ndarray):
        return tensor
    if isinstance(tensor, keras.Variable) or ops.is_tensor(tensor):
        try:
            return np.from_dlpack(ops.stop_gradient(tensor))
        except (AttributeError, BufferError, RuntimeError):
            pass  # on an accelerator, several devices, or no type of NumPy
    return np.asarray(ops.convert_to_numpy(tensor))
