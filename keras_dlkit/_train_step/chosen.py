"""The train step of the backend that runs.

Not in the `__init__` of this folder, for `ops` takes small modules from it,
and the train steps need `ops`.
"""

import keras

if keras.config.backend() == "tensorflow":
    from keras_dlkit._train_step.tensorflow import TrainStep
elif keras.config.backend() == "jax":
    from keras_dlkit._train_step.jax import TrainStep  # type: ignore
elif keras.config.backend() == "torch":
    from keras_dlkit._train_step.torch import TrainStep  # type: ignore
else:
    raise ImportError(
        "keras_dlkit trains on the tensorflow, jax and torch backends of "
        f"Keras. Received: KERAS_BACKEND={keras.config.backend()!r}"
    )

__all__ = ["TrainStep"]
