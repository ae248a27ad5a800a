"""Files of parts hold no code: they are loaded in `safe_mode`."""

import inspect
import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import keras_dlkit as dlkit
from tests.conformance import registry
from tests.conformance.networks import NETWORKS

CASES = [*registry.CASES, *registry.FURTHER, *NETWORKS]


def nodes(config):
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from nodes(value)


def check_plain(config):
    """Names of classes and their settings, and no pickled functions."""
    for node in nodes(json.loads(json.dumps(config))):
        assert node.get("class_name") not in ("__lambda__", "Lambda"), node
        assert node.get("module") != "builtins" or (
            node.get("class_name") == "function"
        ), node


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_of_each_case_is_loaded_in_safe_mode(case, tmp_path):
    path = tmp_path / "model.keras"
    model = registry.attached(case)
    model.optimizer.build(model.trainable_variables)
    model.save(path)
    with zipfile.ZipFile(path) as file:
        config = json.loads(file.read("config.json"))
        weights = file.read("model.weights.h5")
        allowed = {"metadata.json", "config.json", "model.weights.h5"}
        assert set(file.namelist()) <= allowed | {"assets/"}
    check_plain(config)
    with h5py.File(io.BytesIO(weights), "r") as file:
        kinds = []
        file.visititems(
            lambda name, node: kinds.append(
                getattr(node, "dtype", np.dtype(int))
            )
        )
    assert not any(kind.hasobject for kind in kinds)
    loaded = keras.saving.load_model(path, safe_mode=True)
    assert type(loaded) is type(model) and loaded.compiled


def dense(name=None):
    return layers.Dense(3, "sigmoid", name=name)


def sde_block():
    return dlkit.layers.SDEBlock(dense(), dense(), num_steps=2, sigma=0.5)


# How to make one of each class whose required arguments are no numbers.
MADE = {
    "Attached": lambda: dlkit.attach(registry.network()),
    "BatchEnsemble": lambda: dlkit.models.BatchEnsemble(registry.network(), 2),
    "SDENet": lambda: dlkit.models.SDENet(dense("a"), sde_block(), dense("b")),
    "SDEBlock": sde_block,
    "RandomChoice": lambda: dlkit.layers.RandomChoice(
        [dlkit.layers.MixUp(), dlkit.layers.CutMix()]
    ),
    "Supermask": lambda: dlkit.layers.Supermask(dense(), sparsity=0.5),
    "ManifoldMixUp": lambda: dlkit.layers.ManifoldMixUp(at="hidden"),
    "UncertaintyWeighting": lambda: dlkit.losses.UncertaintyWeighting(
        {"a": "regression"}
    ),
    "PolynomialSparsity": lambda: dlkit.schedules.PolynomialSparsity(
        0.5, begin_step=1, end_step=2
    ),
    "ConstantSparsity": lambda: dlkit.schedules.ConstantSparsity(0.5),
    "Sum": lambda: dlkit.regularizers.Sum(
        [keras.regularizers.L2(), dlkit.regularizers.HypersphericalEnergy()]
    ),
}
ARGUMENTS = {
    "filters": 4,
    "kernel_size": 2,
    "units": 3,
    "ensemble_size": 2,
    "inner_optimizer": "adam",
    "input_dim": 5,
    "output_dim": 3,
    "equation": "ab,bc->ac",
    "output_shape": 3,
    "size": 1,
    "rho": 0.1,
    "recall": 0.9,
}
MODULES = (
    dlkit,
    dlkit.layers,
    dlkit.losses,
    dlkit.metrics,
    dlkit.models,
    dlkit.optimizers,
    dlkit.regularizers,
    dlkit.schedules,
)
CLASSES = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if inspect.isclass(value) and value.__module__.startswith("keras_dlkit")
}


# To make others from: these are registered by who makes them.
BASES = {
    "BatchPart",
    "TaskWeighting",
    "TwoGradient",
    "WeightPenalty",
    "WrapperOptimizer",
}


def test_all_but_bases_are_registered():
    names = {
        cls: keras.saving.get_registered_name(cls) for cls in CLASSES.values()
    }
    left_out = {c.__name__ for c, n in names.items() if n == c.__name__}
    assert left_out == BASES
    for cls in names.keys() - {c for c in names if c.__name__ in BASES}:
        assert names[cls] == f"keras_dlkit>{cls.__name__}"


def make(cls):
    if cls.__name__ in MADE:
        return MADE[cls.__name__]()
    required = {
        name: ARGUMENTS[name]
        for name, p in inspect.signature(cls).parameters.items()
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    return cls(**required)


@pytest.mark.parametrize(
    "cls",
    [cls for cls in CLASSES.values() if cls.__name__ not in BASES],
    ids=lambda cls: cls.__name__,
)
def test_each_public_class_is_made_again_in_safe_mode(cls):
    config = keras.saving.serialize_keras_object(make(cls))
    check_plain(config)
    copy = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(config)), safe_mode=True
    )
    assert type(copy) is cls
    if isinstance(copy, keras.Model):  # built now, as its layers are
        config = config["config"].keys()
        assert copy.get_config().keys() == config
    else:
        assert keras.saving.serialize_keras_object(copy) == config
