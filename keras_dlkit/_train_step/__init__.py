"""The train step of `Attached`: one file a backend, the same story in each.

1. The batch parts change `(x, y, sample_weight)`.
2. Clean pass: loss, metrics, batch-norm statistics and gradient at w.
3. On a step that ascends: the gradient at w + e, in a `StatelessScope` that
   holds w + e for the weights and, for every other variable, its value from
   before the clean pass. Nothing is written, so nothing is to be restored.
4. The two gradients are combined, and applied once.
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
