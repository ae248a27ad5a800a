"""The processes that train together: on JAX there may be several."""

import keras
import numpy as np


def count():
    if keras.config.backend() != "jax":
        return 1
    import jax

    return jax.process_count()


def gather(numbers):
    """The integers that each process calls this with, in their order.

    Args:
        numbers: Nested list of integers, of one shape in all processes.

    Returns:
        A list with an array for each process; all of them have to call this.
    """
    numbers = np.array(numbers, "int32")
    if count() == 1:
        return [numbers]
    from jax.experimental import multihost_utils

    return list(multihost_utils.process_allgather(numbers))


def holds(variable):
    """Whether this process has all of a variable."""
    value = variable.value
    return any(
        getattr(value, name, True)
        for name in ("is_fully_addressable", "is_fully_replicated")
    )
