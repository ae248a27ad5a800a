"""One process tests one backend: that of `KERAS_BACKEND`."""

import os

# Before JAX starts: four host devices, of which one is used unless asked.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest

BACKEND = keras.config.backend()


@pytest.fixture(autouse=True)
def clean_session():
    keras.utils.set_random_seed(7)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session(free_memory=False)
