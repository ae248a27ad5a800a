"""`attach`: what it takes over, what it answers, what it refuses."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests import zoo
from tests.running import assert_same
from tests.running import run
from tests.running import slow_to_compile
from tests.running import weights_of

MOMENTUM = {"learning_rate": 0.1, "momentum": 0.9}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_attached_is_stock_to_the_bit(name):
    """No part and rho=0 train, evaluate and predict as Keras does."""
    results = []
    for kind in ("stock", "attached", "null"):
        model, data, arguments = zoo.make(name)
        network = model
        optimizer = keras.optimizers.SGD(**MOMENTUM)
        if kind != "stock":
            model = dlkit.attach(model)
        if kind == "null":
            optimizer = dlkit.optimizers.SAM(optimizer, rho=0.0)
        model.compile(optimizer=optimizer, **arguments)
        history = run(model, data)
        evaluation = model.evaluate(
            data["x"], data["y"], verbose=0, return_dict=True
        )
        prediction = keras.tree.flatten(model.predict(data["x"], verbose=0))
        results.append((history, evaluation, prediction, weights_of(network)))
    for result in results[1:]:
        assert result[0] == results[0][0]
        assert result[1] == results[0][1]
        assert_same(result[2], results[0][2])
        assert_same(result[3], results[0][3])


@pytest.mark.parametrize("name", zoo.MODELS)
def test_sam_trains_every_model(name):
    model, data, arguments = zoo.make(name)
    stock, _, _ = zoo.make(name)
    model = dlkit.attach(model)
    sgd = keras.optimizers.SGD(0.1)
    model.compile(optimizer=dlkit.optimizers.SAM(sgd, rho=0.2), **arguments)
    stock.compile(optimizer=keras.optimizers.SGD(0.1), **arguments)
    history, expected = run(model, data), run(stock, data)
    assert history.keys() == expected.keys()
    # The first batch is the same; then the weights part.
    assert np.isfinite(history["loss"]).all()
    gaps = [
        np.abs(a - b).max()
        for a, b in zip(weights_of(model.model), weights_of(stock))
    ]
    assert 1e-5 < max(gaps) < 1


# Taking over, merging, giving back.


def test_a_compiled_model_is_taken_over():
    net, data, arguments = zoo.make("sequential")
    optimizer = keras.optimizers.Adam(0.01)
    net.compile(optimizer, **arguments)
    run(net, data, epochs=1)
    twin, _, _ = zoo.make("sequential")
    twin.compile(keras.optimizers.Adam(0.01), **arguments)
    expected = run(twin, data, epochs=1), run(twin, data, epochs=1)
    with pytest.warns(UserWarning, match="Call `fit` on the model"):
        model = dlkit.attach(net)
    assert model.optimizer is optimizer
    assert run(model, data, epochs=1) == expected[1]


@slow_to_compile
def test_attach_merges_parts():
    net, data, _ = zoo.make("sequential")
    mix = dlkit.layers.MixUp(0.3, num_classes=3)
    first = dlkit.attach(net, mix)
    first.compile("sgd", **zoo.classifier("categorical_crossentropy"))
    run(first, data)
    second = dlkit.layers.MixUp(0.1)
    model = dlkit.attach(first, second)
    assert model.model is net and list(model.parts) == [mix, second]
    assert model.optimizer is first.optimizer
    run(model, data)


@slow_to_compile
def test_detach_gives_the_plain_model_back(tmp_path):
    net, data, arguments = zoo.make("sequential")
    model = dlkit.attach(net)
    inner = keras.optimizers.SGD(**MOMENTUM)
    model.compile(dlkit.optimizers.SAM(inner), **arguments)
    run(model, data)
    plain = dlkit.detach(model)
    assert plain is net and plain.optimizer is inner
    assert plain.evaluate(data["x"], data["y"], verbose=0) == pytest.approx(
        model.evaluate(data["x"], data["y"], verbose=0)
    )
    run(plain, data)
    plain.save(tmp_path / "net.keras")
    text = (tmp_path / "net.keras").read_bytes()
    assert b"keras_dlkit" not in text
    model.save(tmp_path / "attached.keras")
    again = dlkit.detach(tmp_path / "attached.keras")
    assert type(again) is keras.Sequential
    assert_same(weights_of(again), weights_of(net))


def test_detach_of_a_plain_model():
    net, _, _ = zoo.make("sequential")
    assert dlkit.detach(net) is net


def test_a_detached_model_has_no_energies():
    energy = dlkit.regularizers.HypersphericalEnergy(0.5)
    l2 = keras.regularizers.L2(0.25)
    dense = keras.layers.Dense(3, kernel_regularizer=l2)
    net = keras.Sequential([keras.Input((4,)), dense])
    dlkit.regularizers.regularize(net, energy)
    assert len(dense.kernel_regularizer.regularizers) == 2
    plain = dlkit.detach(dlkit.attach(net))
    assert plain.layers[0].kernel_regularizer is l2
    assert dense.kernel.regularizer is l2


# Saving.


@pytest.mark.parametrize(
    "name", ["sequential", "subclassed", "own_loss", "own_compile"]
)
def test_interrupted_and_resumed_is_unbroken(name, tmp_path):
    def start():
        model, data, arguments = zoo.make(name)
        model = dlkit.attach(model)
        sgd = keras.optimizers.SGD(**MOMENTUM)
        model.compile(optimizer=dlkit.optimizers.SAM(sgd, rho=0.2), **arguments)
        return model, data

    unbroken, data = start()
    run(unbroken, data, epochs=4)
    model, _ = start()
    run(model, data, epochs=2)
    model.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    assert type(resumed) is dlkit.Attached
    assert type(resumed.optimizer) is dlkit.optimizers.SAM
    run(resumed, data, epochs=2)
    assert_same(weights_of(resumed), weights_of(unbroken))
    assert_same(
        [ops.convert_to_numpy(v) for v in resumed.optimizer.variables],
        [ops.convert_to_numpy(v) for v in unbroken.optimizer.variables],
    )


@keras.saving.register_keras_serializable("tests")
class ForgetfulCompile(keras.Sequential):
    """A `compile` of its own that does not say how to repeat it."""

    def compile(self, strength=1.0, **kwargs):
        super().compile(**kwargs)
        self.strength = strength


def test_a_compile_that_cannot_be_repeated_is_left_to_the_user(tmp_path):
    """As Keras does: not compiled with half of the arguments."""
    net = ForgetfulCompile([keras.Input((4,)), keras.layers.Dense(3)])
    model = dlkit.attach(net)
    model.compile(optimizer="sgd", loss="mse", strength=2.0)
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="`compile\\(\\)` method is custom"):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not loaded.model.compiled
    loaded.compile(optimizer="sgd", loss="mse", strength=2.0)
    assert loaded.model.strength == 2.0
    loaded.fit(zoo.rows(), zoo.rows(3), verbose=0)


@slow_to_compile
def test_weight_files_are_those_of_the_network(tmp_path):
    net, data, arguments = zoo.make("sequential")
    model = dlkit.attach(net)
    model.compile("sgd", **arguments)
    run(model, data)
    model.save_weights(tmp_path / "a.weights.h5")
    plain, _, _ = zoo.make("sequential")
    plain.load_weights(tmp_path / "a.weights.h5")
    assert_same(weights_of(plain), weights_of(net))
    net.save_weights(tmp_path / "b.weights.h5")
    other = dlkit.attach(zoo.make("sequential")[0])
    other.load_weights(tmp_path / "b.weights.h5")
    assert_same(weights_of(other.model), weights_of(net))


def test_a_wrong_weights_file_is_an_error(tmp_path):
    model = dlkit.attach(zoo.make("sequential")[0])
    model.save_weights(tmp_path / "a.weights.h5")
    net = keras.Sequential(
        [
            keras.Input((4,)),
            *zoo.make("sequential")[0].layers,
            layers.Dropout(0.1, seed=1),
        ]
    )
    other = dlkit.attach(net)
    with pytest.raises(ValueError, match="random state"):
        other.load_weights(tmp_path / "a.weights.h5")


# MixUp in `fit`.


def test_mix_up_encodes_in_evaluation_and_mixes_nothing():
    net, data, _ = zoo.make("sequential")
    model = dlkit.attach(net, dlkit.layers.MixUp(0.4, num_classes=3, seed=1))
    model.compile("sgd", **zoo.classifier("categorical_crossentropy"))
    run(model, data)
    stock, _, _ = zoo.make("sequential")
    stock.set_weights(net.get_weights())
    stock.compile("sgd", **zoo.classifier())
    x, y = data["x"], data["y"]
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        stock.evaluate(x, y, verbose=0), rel=1e-5
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"sample_weight": np.linspace(0, 2, 8).astype("float32")},
        {"class_weight": {0: 0.5, 1: 2.0, 2: 0.0}},
    ],
    ids=lambda given: "".join(given),
)
def test_mix_up_trains_on_what_it_draws(given):
    """One step is that of the mix of the two weighted losses, in float64."""
    x, y = zoo.rows()[:8], zoo.labels()[:8]
    net = keras.Sequential([keras.Input((4,)), layers.Dense(3, use_bias=False)])
    before = net.get_weights()[0].astype("float64")
    model = dlkit.attach(net, dlkit.layers.MixUp(1.0, num_classes=3, seed=9))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, run_eagerly=True)
    history = model.fit(x, y, 8, verbose=0, shuffle=False, **given)
    twin = dlkit.layers.MixUp(1.0, num_classes=3, seed=9)
    lam, partner = map(ops.convert_to_numpy, twin.draw(8, twin.seed_generator))
    weight = np.array([given.get("class_weight", {}).get(k, 1) for k in y])
    weight = given.get("sample_weight", weight)
    mixed = lam[:, None] * x + (1 - lam[:, None]) * x[partner]
    logits = mixed @ before
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses, slopes = 0, 0
    for share, rows in ((lam, np.arange(8)), (1 - lam, partner)):
        share = share * weight[rows] / 8
        losses -= share * log_shares[np.arange(8), y[rows]]
        slopes += share[:, None] * (np.exp(log_shares) - np.eye(3)[y[rows]])
    np.testing.assert_allclose(
        net.get_weights()[0], before - 0.5 * mixed.T @ slopes, atol=1e-6
    )
    assert history.history["loss"][0] == pytest.approx(losses.sum(), 1e-5)


def test_mix_up_mixes_anew_each_batch_and_resumes(tmp_path):
    def start():
        net, data, _ = zoo.make("sequential")
        model = dlkit.attach(
            net, dlkit.layers.MixUp(1.0, num_classes=3, active_epochs=(0, 3))
        )
        model.compile(
            dlkit.optimizers.SAM("adam"),
            **zoo.classifier("categorical_crossentropy"),
        )
        return model, data

    keras.utils.set_random_seed(0)
    unbroken, data = start()
    run(unbroken, data, epochs=4)
    model, _ = start()
    run(model, data, epochs=2)
    model.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    resumed.fit(
        **data,
        batch_size=8,
        initial_epoch=2,
        epochs=4,
        shuffle=False,
        verbose=0,
    )
    assert_same(weights_of(resumed), weights_of(unbroken))


@slow_to_compile
def test_parts_of_many_outputs():
    net, data, arguments = zoo.make("dict_in_dict_out")
    part = dlkit.layers.MixUp(num_classes={"kind": 3, "size": None})
    model = dlkit.attach(net, part)
    arguments["loss"] = {
        **arguments["loss"],
        "kind": "categorical_crossentropy",
    }
    model.compile(dlkit.optimizers.SAM("sgd"), **arguments)
    history = run(model, {**data, "validation_split": 0.3})
    stock, _, arguments = zoo.make("dict_in_dict_out")
    stock.compile("sgd", **arguments)
    expected = run(stock, {**data, "validation_split": 0.3})
    assert history.keys() == expected.keys()


# Other ways into `fit`.


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return self.x[rows], self.y[rows]


def test_datasets_generators_and_single_batches_train_alike():
    def start():
        net, data, arguments = zoo.make("convolutional")
        model = dlkit.attach(net)
        model.compile(dlkit.optimizers.SAM("sgd", rho=0.2), **arguments)
        return model, data

    model, data = start()
    run(model, data, epochs=1)
    dataset = Batches(data["x"], data["y"])
    others = []
    for feed in ("dataset", "generator", "batches"):
        other, _ = start()
        if feed == "dataset":
            other.fit(dataset, shuffle=False, verbose=0)
        elif feed == "generator":
            generator = (dataset[i] for i in range(3))
            other.fit(generator, steps_per_epoch=3, shuffle=False, verbose=0)
        else:
            for i in range(3):
                other.train_on_batch(*dataset[i])
        others.append(other)
    for other in others:
        for a, b in zip(weights_of(model), weights_of(other)):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_off_switch_by_epoch_in_a_compiled_fit():
    """Where a part is off, the epoch is a plain one; where it is on, not."""

    def losses(*parts):
        model, data, arguments = zoo.make("sequential")
        model = dlkit.attach(model, *parts)
        arguments["loss"] = "categorical_crossentropy"
        model.compile("sgd", **arguments)
        y = np.eye(3, dtype="float32")[data["y"]]
        history = model.fit(data["x"], y, 8, epochs=3, shuffle=False, verbose=0)
        return np.array(history.history["loss"])

    part = dlkit.layers.MixUp(1.0, active_epochs=(1, 2), seed=0)
    plain, switched = losses(), losses(part)
    np.testing.assert_allclose(switched[0], plain[0], rtol=1e-5)
    assert abs(switched[1] / plain[1] - 1) > 1e-3
    on = losses(dlkit.layers.MixUp(1.0, active_epochs=(0, 3), seed=0))
    assert abs(on[0] / plain[0] - 1) > 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs_are_mixed_in_fit(dtype):
    net = keras.Sequential(
        [keras.Input((4, 4, 1), dtype=dtype), layers.Flatten(), layers.Dense(3)]
    )
    mix = [
        dlkit.layers.MixUp(1.0, num_classes=3),
        dlkit.layers.CutMix(num_classes=3),
    ]
    parts = dlkit.layers.CutOut(2), dlkit.layers.RandomChoice(mix)
    model = dlkit.attach(net, *parts)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    x = ops.cast(np.ones((8, 4, 4, 1)), dtype)
    y = ops.convert_to_tensor(np.arange(8) % 3)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert np.isfinite(float(logs["loss"]))


@slow_to_compile
def test_positional_arguments_and_a_single_callback():
    model, data, arguments = zoo.make("sequential")
    part = dlkit.layers.MixUp(num_classes=3, active_epochs=(0, 1))
    model = dlkit.attach(model, part)
    model.compile("sgd", "categorical_crossentropy")
    history = keras.callbacks.History()
    model.fit(data["x"], data["y"], 8, 2, 0, callbacks=history)
    assert int(ops.convert_to_numpy(part.epoch)) == 1
    callbacks = keras.callbacks.CallbackList(
        [history], model=model, epochs=3, steps=3
    )
    model.fit(data["x"], data["y"], 8, 3, 0, callbacks=callbacks)
    assert int(ops.convert_to_numpy(part.epoch)) == 2


@slow_to_compile
def test_clone_is_a_model_of_its_own():
    model, data, arguments = zoo.make("sequential")
    model = dlkit.attach(model)
    clone = keras.models.clone_model(model)
    assert type(clone) is dlkit.Attached
    clone.compile(dlkit.optimizers.SAM("sgd"), **arguments)
    before = weights_of(model)
    run(clone, data)
    assert_same(before, weights_of(model))


def test_fit_before_compile_says_so():
    model, data, _ = zoo.make("sequential")
    with pytest.raises(ValueError, match="compile"):
        run(dlkit.attach(model), data)


@pytest.mark.parametrize(
    ("method", "arguments", "passes"),
    [
        ("SAM", {}, [2, 2, 2, 2, 2, 2]),
        ("SAM", {"every_steps": 3}, [1, 1, 2, 1, 1, 2]),
        ("SAM", {"start_step": 4}, [1, 1, 1, 1, 2, 2]),
        ("SAM", {"rho": 0.0}, [1, 1, 1, 1, 1, 1]),
        ("GSAM", {}, [2, 2, 2, 2, 2, 2]),
        ("FriendlySAM", {"every_steps": 3}, [1, 1, 2, 1, 1, 2]),
        ("LookSAM", {"every_steps": 3}, [2, 1, 1, 2, 1, 1]),
        ("MomentumSAM", {"rho": 0.1}, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_passes_of_each_step(method, arguments, passes):
    """So many, all of a step with the same dropout mask."""
    seen = []

    class Noted(layers.Layer):
        def call(self, x):
            seen.append(x)
            return x

    stack = [layers.Dropout(0.5, seed=1), Noted(), layers.Dense(1)]
    model = dlkit.attach(keras.Sequential([keras.Input((4,)), *stack]))
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer = getattr(dlkit.optimizers, method)(inner, **arguments)
    model.compile(optimizer, "mse", run_eagerly=True)
    counts, masks = [], []
    for _ in passes:
        seen.clear()
        model.train_on_batch(np.ones((4, 4)), zoo.rows(1)[:4])
        if not counts and keras.config.backend() != "tensorflow":
            seen.pop(0)  # a symbolic pass of Keras
        first, *others = map(ops.convert_to_numpy, seen)
        assert_same(others, [first] * len(others))
        assert 0 < (first == 0).sum() < first.size
        counts.append(len(seen))
        masks.append(first.tobytes())
    assert counts == passes
    assert len(set(masks)) == len(masks)


if keras.config.backend() == "tensorflow":
    import tensorflow as tf

    def test_the_strategy_is_the_network_s():
        """Also where the network is attached outside of its scope."""
        strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
        with strategy.scope():
            net = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
        model = dlkit.attach(net)
        assert model.distribute_strategy is strategy
        assert dlkit.attach(model).distribute_strategy is strategy
        model.compile(dlkit.optimizers.SAM("sgd"), "mse")
        model.fit(zoo.rows(), zoo.rows(1), verbose=0)


def test_a_fit_of_ones_own_is_never_replaced():
    class Mine(dlkit.models.SDENet):
        def fit(self, *args, **kwargs):
            return super().fit(*args, **kwargs)

    net = Mine(
        keras.Sequential([keras.Input((4,)), layers.Dense(3)]),
        dlkit.layers.SDEBlock(
            layers.Dense(3), layers.Dense(1, "sigmoid"), num_steps=2
        ),
        layers.Dense(2),
    )
    with pytest.raises(ValueError, match="`fit`"):
        dlkit.attach(net)
