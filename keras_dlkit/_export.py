"""The one way in which a class becomes public."""

from typing import TypeVar

import keras

Class = TypeVar("Class", bound=type)

PACKAGE = "keras_dlkit"


def export(cls: Class) -> Class:
    """Registers `cls` for saving as `keras_dlkit>Name`.

    The name is written into users' `.keras` files: it is for ever.
    """
    return keras.saving.register_keras_serializable(package=PACKAGE)(cls)
