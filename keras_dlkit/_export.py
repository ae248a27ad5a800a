"""The one way in which a class becomes public."""

import keras

PACKAGE = "keras_dlkit"


def export(cls):
    """Registers `cls` for saving as `keras_dlkit>Name`.

    The name is written into users' `.keras` files: it is for ever.
    """
    return keras.saving.register_keras_serializable(package=PACKAGE)(cls)
