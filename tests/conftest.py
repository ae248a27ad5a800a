"""One process tests one backend: that of `KERAS_BACKEND`."""

import collections
import gc
import os
import pathlib

# Before JAX starts: four host devices, of which one is used unless asked.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What JAX compiled before is compiled: most of the time of these tests.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import keras
import pytest

BACKEND = keras.config.backend()


def pytest_configure(config):
    """Few examples of each property where slow tests are left out, too."""
    quick = "not slow" in config.option.markexpr
    for name, examples in (("quick", 10), ("thorough", 200)):
        hypothesis.settings.register_profile(
            name, deadline=None, max_examples=examples, derandomize=quick
        )
    hypothesis.settings.load_profile("quick" if quick else "thorough")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Where all is compiled before it runs: of many like cases one in five.

    Along a diagonal, so that of two arguments each meets all its values. A
    test that says itself which of its cases are slow is left as it is.
    """
    if BACKEND == "torch":
        return
    cases = collections.defaultdict(list)
    for item in items:
        cases[item.nodeid.split("[")[0]].append(item)
    for alike in cases.values():
        if len(alike) < 3 or any(map(is_slow, alike)):
            continue
        for number, item in enumerate(alike):
            if number % 5 != number // 5 % 5:
                item.add_marker(pytest.mark.slow)


def is_slow(item):
    return item.get_closest_marker("slow") is not None


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """What compilers keep of a file is not walked through for garbage again."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def clean_session():
    keras.utils.set_random_seed(7)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session(free_memory=False)
