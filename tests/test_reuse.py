"""What was trained with parts is of use without this package."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlkit as dlkit
from tests import exports

BACKEND = keras.config.backend()
CLASSES = 3
each_way = pytest.mark.parametrize(
    "way", exports.WAYS, ids=lambda way: way.__name__
)
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the converters


def images():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 6, 6, 1)).astype("float32")
    return x, np.arange(16) % CLASSES


def network():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, name="first"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(CLASSES, "softmax"),
        ]
    )


def trained_with_parts():
    """SAM, MixUp, an energy and pruning in one fit; the plain network."""
    net = network()
    dlkit.regularizers.regularize(
        net, dlkit.regularizers.HypersphericalEnergy(0.01)
    )
    model = dlkit.attach(net, dlkit.layers.MixUp(0.2, num_classes=CLASSES))
    model.compile(
        dlkit.optimizers.SAM(keras.optimizers.Adam(0.01)),
        "categorical_crossentropy",
    )
    half = dlkit.schedules.ConstantSparsity(0.5)
    pruning = dlkit.callbacks.MagnitudePruning(half)
    model.fit(*images(), epochs=2, verbose=0, callbacks=[pruning])
    return dlkit.detach(model)


def trained(change):
    """A network with a component in it, after some steps."""
    model = change(network())
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*images(), verbose=0)
    return model


def sde_net():
    """Trained to tell what it knows; served, it gives its mean prediction."""
    keras.utils.set_random_seed(3)
    stem = [
        keras.Input((6, 6, 1)),
        layers.Conv2D(4, 3),
        layers.GroupNormalization(2),
    ]
    model = dlkit.models.SDENet(
        keras.Sequential(stem),
        sde_block(),
        keras.Sequential([layers.Flatten(), layers.Dense(CLASSES)]),
        seed=1,
    )
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", logits)
    model.fit(*images(), verbose=0)
    return model


def sde_block():
    pooled = [layers.GlobalAveragePooling2D(), layers.Dense(1, "sigmoid")]
    return dlkit.layers.SDEBlock(
        layers.Conv2D(4, 3, padding="same"),
        keras.Sequential(pooled),
        num_steps=3,
        t_end=1.0,
        seed=1,
    )


def with_sde_block(net):
    """After the first layer of the network."""
    first, *rest = net.layers
    return keras.Sequential([keras.Input((6, 6, 1)), first, sde_block(), *rest])


def as_ensemble(net):
    return dlkit.models.BatchEnsemble(net, 2, seed=0)


# Components that live in the network: a row each. They need keras_dlkit to be
# loaded from `.keras`, and nothing where they are served.
COMPONENTS = {
    "Supermask": lambda: trained(
        lambda net: dlkit.sparsity.supermask(net, 0.5, seed=0)
    ),
    "SDEBlock": lambda: trained(with_sde_block),
    "SDENet": sde_net,
    "BatchEnsemble": lambda: trained(as_ensemble),
    "BatchEnsemble.fold": lambda: trained(as_ensemble).fold(average=True),
}
# Ways that a component cannot go, and what to do instead.
CLOSED = {
    ("Supermask", exports.by_onnxruntime, "torch"): (
        "PyTorch's ONNX exporter has no bit casts: `sparsity.strip` first"
    ),
}


@pytest.fixture(scope="module")
def plain():
    model = trained_with_parts()
    x, _ = images()
    return model, x, model.predict(x, verbose=0)


@each_way
def test_a_network_trained_with_parts_leaves_keras(way, plain, tmp_path):
    exports.check_way(way)
    model, x, expected = plain
    exports.assert_served(way(model, tmp_path), x, expected)


@pytest.mark.slow
@each_way
@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_leaves_keras(name, way, tmp_path):
    exports.check_way(way)
    if (name, way, BACKEND) in CLOSED:
        pytest.skip(CLOSED[name, way, BACKEND])
    model = COMPONENTS[name]()
    x, _ = images()
    expected = model.predict(x, verbose=0)
    exports.assert_served(way(model, tmp_path), x, expected)


@pytest.mark.slow
def test_it_is_loaded_where_this_package_cannot_be(plain, tmp_path):
    model, x, expected = plain
    serve = exports.in_a_fresh_process(model, tmp_path)
    exports.assert_served(serve, x, expected, atol=1e-6)


def test_the_fresh_process_has_nothing_of_ours(tmp_path):
    """Else the test before would say nothing: an attached model is refused."""
    model = dlkit.attach(keras.Sequential([keras.Input((2,)), layers.Dense(1)]))
    serve = exports.in_a_fresh_process(model, tmp_path)
    with pytest.raises(AssertionError, match="keras_dlkit"):
        serve(np.ones((1, 2), "float32"))


if BACKEND == "tensorflow":

    def test_a_served_network_is_a_frozen_feature_extractor(plain, tmp_path):
        """As TF-Hub modules were used: in a network that goes on training."""
        model, x, expected = plain
        features = exports.as_layer(model, tmp_path)
        features.trainable = False
        head = keras.Sequential([features, layers.Dense(2, "softmax")])
        head.compile("sgd", "sparse_categorical_crossentropy")
        head.fit(x, np.arange(16) % 2, verbose=0)
        exports.assert_served(features, x, expected)
