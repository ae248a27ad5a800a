"""An ensemble against plain networks, each with the kernels of one member.

What `fold` gives are plain models of Keras; that they have the weights they
should is tested with the layers. Their losses and their steps of SGD say what
those of the ensemble must be.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.models import BatchEnsemble
from tests.running import slow_to_compile

BACKEND = keras.config.backend()
MEMBERS = 4


def arrays(variables):
    return [ops.convert_to_numpy(v) for v in variables]


def mlp(last="softmax", seed=3):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(6, "tanh", name="hidden"),
            layers.Dense(3, last, name="head"),
        ]
    )


def data(rows=8, classes=3):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 5)).astype("float32")
    weights = rng.uniform(0.5, 2.0, rows).astype("float32")
    return x, np.arange(rows) % classes, weights


def ensemble(net=None, loss="sparse_categorical_crossentropy", **options):
    model = BatchEnsemble(
        net or mlp(),
        MEMBERS,
        **{"seed": 1, "fast_initializer": "normal", **options},
    )
    model.compile(keras.optimizers.SGD(1.0), loss, metrics=["accuracy"])
    return model


# Networks of every kind: made anew, with data.


def convolutional():
    net = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Rescaling(0.5),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.BatchNormalization(center=False, scale=False, name="bare"),
            layers.DepthwiseConv2D(2),
            layers.SeparableConv2D(5, 2),
            layers.GroupNormalization(5),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(3, "softmax"),
        ]
    )
    return net, np.random.default_rng(0).normal(size=(6, 8, 8, 2))


def nested():
    inner = keras.Sequential(
        [layers.Dense(4, "relu"), layers.LayerNormalization()]
    )
    inputs = keras.Input((5,))
    block = keras.Model(inputs, layers.Dense(5)(inner(inputs)), name="block")
    x = keras.Input((5,))
    hidden = layers.Add()([x, block(x)])
    net = keras.Model(x, layers.Dense(3, "softmax")(block(hidden)))
    return net, data()[0]


def nested_in_sequential():
    inner, _ = nested()
    return keras.Sequential(
        [keras.Input((5,)), inner, layers.Dense(2)]
    ), data()[0]


def dict_in_dict_out():
    a, b = keras.Input((5,), name="a"), keras.Input((2,), name="b")
    h = layers.Dense(5, "tanh")(layers.Concatenate()([a, b]))
    outputs = {
        "kind": layers.Dense(3, "softmax", name="kind")(h),
        "size": layers.Dense(1, name="size")(h),
    }
    net = keras.Model({"a": a, "b": b}, outputs)
    return net, {"a": data()[0], "b": data()[0][:, :2]}


def tokens():
    x = keras.Input((6,), dtype="int32")
    h = layers.Embedding(9, 4)(x)
    h = layers.Conv1D(4, 3, padding="causal")(h)
    h = layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")(h)
    h = layers.GlobalAveragePooling1D()(ops.tanh(h))
    net = keras.Model(x, layers.Dense(3, "softmax")(h))
    return net, np.random.default_rng(0).integers(0, 9, (7, 6))


def adapted():
    x = np.random.default_rng(0).normal(5.0, 3.0, (6, 4)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(x)
    net = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(2)])
    return net, x


NETS = {
    f.__name__: f
    for f in (
        convolutional,
        nested,
        nested_in_sequential,
        dict_in_dict_out,
        tokens,
        adapted,
    )
}


def flat(structure):
    return keras.tree.flatten(structure)


@slow_to_compile
@pytest.mark.parametrize("name", NETS)
def test_members_are_plain_models_of_keras(name, tmp_path):
    net, x = NETS[name]()
    before = arrays(net.weights)
    model = BatchEnsemble(net, 3, rank=2, fast_initializer="normal")
    rng = np.random.default_rng(1)
    for v in model.trainable_weights:
        v.assign(v + rng.normal(0.0, 0.3, v.shape).astype("float32"))
    members = flat(model.member_predict(x))
    folded = model.fold()
    for index, plain in enumerate(folded):
        assert {
            type(m).__module__.split(".")[0] for m in plain._flatten_layers()
        } == {"keras"}
        for a, b in zip(flat(plain.predict(x, verbose=0)), members):
            np.testing.assert_allclose(a, b[index], rtol=1e-4, atol=1e-5)
    assert np.abs(members[0][0] - members[0][1]).max() > 1e-3
    predicted = flat(model.predict(x, batch_size=4, verbose=0))
    one = model.fold(average=True)
    paths = [v.path for v in one.variables if "seed_generator" not in v.path]
    assert len(set(paths)) == len(paths)
    one.save(tmp_path / "plain.keras")
    one = keras.saving.load_model(tmp_path / "plain.keras")
    for a, b, c in zip(members, predicted, flat(one.predict(x, verbose=0))):
        np.testing.assert_allclose(a.mean(0), b, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(b, c, rtol=1e-4, atol=1e-5)
    for a, b in zip(before, arrays(net.weights)):
        np.testing.assert_array_equal(a, b)  # the network is not changed
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for a, b in zip(
        predicted, flat(loaded.predict(x, batch_size=4, verbose=0))
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# One step of SGD, from the steps of plain networks.


def shares(member_batches, rows):
    """The rows of each member, and the weight of its loss."""
    if member_batches == "tile":
        return [(np.arange(rows), 1 / MEMBERS)] * MEMBERS
    parts = np.split(
        np.arange(rows), [-(-rows // MEMBERS) * m for m in range(1, MEMBERS)]
    )
    return [(part, len(part) / rows) for part in parts]


def fast_of(model, name):
    """Kernel, r and s of a layer, in float64."""
    layer = model.network.get_layer(name)
    values = layer.kernel, layer.input_scale, layer.output_scale
    return [a.astype("float64") for a in arrays(values)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "member_batches, rows",
    [("tile", 7), ("split", 8), ("split", 10), ("split", 3)],
)
def test_a_step_is_the_mean_of_those_of_the_members(
    member_batches, rows, weighted
):
    x, y, sample_weight = data(rows)
    sample_weight = sample_weight if weighted else None
    model = ensemble(member_batches=member_batches)
    names = ("hidden", "head")
    before = {name: fast_of(model, name) for name in names}
    biases = {n: arrays([model.network.get_layer(n).bias])[0] for n in names}
    plain = model.fold()
    start = [arrays(net.weights) for net in plain]
    # In one batch, which is a last one where it has fewer rows.
    fit = {"batch_size": 12, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, sample_weight=sample_weight, **fit).history
    loss, expected_loss = history["loss"][0], 0.0
    steps = {name: [np.zeros_like(a) for a in before[name]] for name in names}
    for m, (part, share) in enumerate(shares(member_batches, rows)):
        if not len(part):
            continue
        plain[m].compile(
            keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy"
        )
        own = None if sample_weight is None else sample_weight[part]
        value = plain[m].train_on_batch(x[part], y[part], own)
        expected_loss += share * float(np.ravel(value)[0])
        moved = [
            share * (b.astype("float64") - a)
            for a, b in zip(start[m], arrays(plain[m].weights))
        ]
        for name, kernel, bias in zip(names, moved[::2], moved[1::2]):
            w, r, s = before[name]
            # With the plain kernel w * r s^T: the chain rule.
            steps[name][0] += kernel * np.outer(r[m, 0], s[m, 0])
            steps[name][1][m, 0] = (kernel * w) @ s[m, 0]
            steps[name][2][m, 0] = r[m, 0] @ (kernel * w)
            now = arrays([model.network.get_layer(name).bias])[0][m]
            np.testing.assert_allclose(now, biases[name][m] + bias, atol=1e-5)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for name in names:
        for a, b, step in zip(fast_of(model, name), before[name], steps[name]):
            np.testing.assert_allclose(a, b + step, atol=2e-5)


def coupled(y_true, y_pred):
    """A loss that looks at all rows at once."""
    return ops.square(ops.mean(y_true) - ops.mean(y_pred[:, 0]))


@keras.saving.register_keras_serializable("tests")
class Contrast(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.sum(ops.square(y_pred - ops.mean(y_pred, axis=0)), -1)


LOSSES = {
    "crossentropy": "categorical_crossentropy",
    "sum": lambda: keras.losses.CategoricalCrossentropy(reduction="sum"),
    "dice": lambda: keras.losses.Dice(),
    "function": lambda: coupled,
    "class": lambda: Contrast(),
    "name": "dice",
}


@pytest.mark.parametrize("member_batches", ["tile", "split"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_mean_of_losses_never_that_of_the_mean(
    name, member_batches
):
    loss = LOSSES[name]
    loss = loss if isinstance(loss, str) else loss()
    x, y, _ = data(8)
    y = np.eye(3, dtype="float32")[y]
    model = ensemble(loss=loss, member_batches=member_batches)
    expected = []
    for plain, (part, _) in zip(model.fold(), shares(member_batches, 8)):
        plain.compile("sgd", loss)
        expected.append(plain.evaluate(x[part], y[part], verbose=0))
    found = model.train_on_batch(x, y)[0]
    if name == "sum" and member_batches == "split":
        expected = np.array(expected)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)


def penalized():
    l2, norm = keras.regularizers.L2(0.1), keras.constraints.MaxNorm(0.5)
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4, bias_regularizer=l2, bias_constraint=norm),
            layers.BatchNormalization(
                gamma_regularizer=l2,
                beta_regularizer=l2,
                gamma_constraint=norm,
            ),
            layers.LayerNormalization(beta_regularizer=l2),
            layers.EinsumDense(
                "ab,bc->ac", 3, bias_axes="c", bias_regularizer=l2
            ),
        ]
    )


def test_penalties_and_constraints_are_those_of_each_member():
    x = data()[0]
    model = ensemble(penalized(), "mse")
    rng = np.random.default_rng(1)
    for v in model.trainable_weights:
        v.assign(v + rng.normal(0.5, 0.5, v.shape).astype("float32"))
    plain = model.fold()
    # Of each a step of no length, which constrains.
    for each in (model, *plain):
        each.compile(keras.optimizers.SGD(0.0), "mse")
    found, *losses = (
        float(np.ravel(each.train_on_batch(x, x[:, :3]))[0])
        for each in (model, *plain)
    )
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)
    for constrained, each in zip(model.fold(), plain):
        for a, b in zip(arrays(constrained.weights), arrays(each.weights)):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_metrics_and_evaluation_are_those_of_the_average():
    x, y, sample_weight = data(12)
    model = ensemble()
    average = np.mean([m.predict(x, verbose=0) for m in model.fold()], 0)
    accuracy = (average.argmax(-1) == y).mean()
    loss = -(sample_weight * np.log(average[np.arange(12), y])).mean()
    found = model.evaluate(
        x, y, sample_weight=sample_weight, batch_size=5, verbose=0
    )
    np.testing.assert_allclose(found, [loss, accuracy], rtol=1e-5)
    assert abs(model.train_on_batch(x, y)[1] - accuracy) < 1e-6


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@slow_to_compile
def test_logits_are_averaged_as_probabilities(tmp_path):
    x, y, _ = data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = ensemble(mlp(None), loss)
    members = model.member_predict(x).astype("float64")
    probabilities = softmax(members).mean(0)
    logits = model.predict(x, verbose=0)
    np.testing.assert_allclose(softmax(logits), probabilities, rtol=1e-5)
    np.testing.assert_allclose(np.exp(logits), probabilities, rtol=1e-4)
    nll = -np.log(probabilities[np.arange(8), y]).mean()
    np.testing.assert_allclose(
        model.evaluate(x, y, verbose=0)[0], nll, rtol=1e-5
    )
    folded = model.fold(average=True).predict(x, verbose=0)
    np.testing.assert_allclose(folded, logits, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), logits, atol=1e-6)
    # A new loss says anew.
    loaded.compile("sgd", "mse")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), members.mean(0), atol=1e-5
    )
    # Not compiled, and nothing said: what the network gives.
    plain = BatchEnsemble(model.network, MEMBERS, convert=False)
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), members.mean(0), atol=1e-5
    )


@slow_to_compile
def test_binary_logits_and_large_ones():
    x, _, _ = data()
    for average in ("sigmoid", "softmax"):
        model = BatchEnsemble(mlp(None), 3, average=average)
        model.compile("sgd", "mse")
        members = model.member_predict(x).astype("float64")
        logits = model.predict(x, verbose=0)
        if average == "softmax":
            np.testing.assert_allclose(
                np.exp(logits), softmax(members).mean(0), rtol=1e-4
            )
        else:
            mean = (1 / (1 + np.exp(-members))).mean(0)
            np.testing.assert_allclose(
                1 / (1 + np.exp(-logits)), mean, rtol=1e-5
            )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model = ensemble(mlp(None), loss)
    model.network.layers[-1].bias.assign(np.full((MEMBERS, 3), 300.0))
    assert np.isfinite(model.predict(x, verbose=0)).all()
    assert model.get_config()["saved_average"] == ["sigmoid"]


@slow_to_compile
def test_several_outputs_are_averaged_each_in_its_way():
    net, x = dict_in_dict_out()
    for outputs in (
        net,
        keras.Model(net.input, [net.output["size"], net.output["kind"]]),
    ):
        model = BatchEnsemble(outputs, 3)
        crossentropy = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True
        )
        by_name = isinstance(outputs.output, dict)
        losses = {"kind": crossentropy, "size": "mse"}
        y = {"kind": data()[1], "size": data()[0][:, :1]}
        if not by_name:
            losses, y = ["mse", crossentropy], [y["size"], y["kind"]]
        model.compile("sgd", losses)
        members, mean = model.member_predict(x), model.predict(x, verbose=0)
        if not by_name:
            members, mean = (
                dict(zip(("size", "kind"), v)) for v in (members, mean)
            )
        np.testing.assert_allclose(
            mean["size"], members["size"].mean(0), atol=1e-6
        )
        np.testing.assert_allclose(
            np.exp(mean["kind"]), softmax(members["kind"]).mean(0), rtol=1e-4
        )
        assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()


def test_masks_reach_the_loss():
    x = np.array([[1, 2, 0, 0], [3, 4, 5, 0]])
    y = np.zeros((2, 4, 1))
    inputs = keras.Input((4,), dtype="int32")
    h = layers.Embedding(9, 3, mask_zero=True)(inputs)
    net = keras.Model(inputs, layers.Dense(1)(h))
    model = ensemble(net, "mse")
    losses = []
    for plain in model.fold():
        plain.compile("sgd", "mse")
        losses.append(plain.evaluate(x, y, verbose=0))
    np.testing.assert_allclose(
        model.train_on_batch(x, y)[0], np.mean(losses), rtol=1e-5
    )
    members = model.member_predict(x).mean(0)[..., 0]
    expected = (members[x > 0] ** 2).mean()
    np.testing.assert_allclose(
        model.evaluate(x, y, verbose=0)[0], expected, rtol=1e-5
    )


# The network that was given.


def test_ones_keep_what_a_network_has_learned():
    net = mlp()
    x, _, _ = data()
    with pytest.warns(UserWarning, match="stay the same"):
        model = BatchEnsemble(net, 3, fast_initializer="ones", rank=2)
    for member in model.member_predict(x):
        np.testing.assert_allclose(member, net.predict(x, verbose=0), atol=1e-6)
    fresh = BatchEnsemble(net, 3, copy_weights=False)
    kernel, other = arrays(
        [net.layers[0].kernel, fresh.network.layers[0].kernel]
    )
    assert (kernel != other).all()


@slow_to_compile
def test_one_member_of_ones_trains_as_the_network():
    x, y, _ = data(20)
    model = BatchEnsemble(mlp(), 1, fast_initializer="ones")
    for v in model.trainable_weights:
        v.trainable = "scale" not in v.name
    plain = mlp()
    for net in (model, plain):
        net.compile(
            keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy"
        )
    fit = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    histories = [net.fit(x, y, **fit).history["loss"] for net in (model, plain)]
    np.testing.assert_allclose(*histories, rtol=1e-5)
    for a, b in zip(arrays(model.fold()[0].weights), arrays(plain.weights)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_tabm_draws_in_the_first_layer_alone():
    model = BatchEnsemble(mlp(), 3, fast_initializer="tabm")
    first, last = model.network.layers
    r, s, *others = arrays(
        [
            first.input_scale,
            first.output_scale,
            last.input_scale,
            last.output_scale,
        ]
    )
    assert set(np.unique(r)) == {-1.0, 1.0}
    assert all((a == 1).all() for a in (s, *others))


def test_shared_and_frozen_layers_stay_as_they_are():
    inputs = keras.Input((6, 4))
    h = layers.Dense(4, name="frozen", trainable=False)(inputs)
    h = layers.LSTM(5, name="memory")(h)
    net = keras.Model(inputs, layers.Dense(3, "softmax")(h))
    with pytest.raises(
        ValueError, match=r"'memory' \(LSTM\).*shared='\^memory\$'"
    ):
        BatchEnsemble(net, 2)
    model = BatchEnsemble(net, 2, shared="memory")
    kinds = [type(layer) for layer in model.network.layers[1:]]
    assert kinds == [layers.Dense, layers.LSTM, dlkit.layers.DenseBatchEnsemble]
    assert not model.network.get_layer("frozen").trainable
    x = np.ones((5, 6, 4))
    for plain, member in zip(model.fold(), model.member_predict(x)):
        np.testing.assert_allclose(
            plain.predict(x, verbose=0), member, atol=1e-6
        )


def test_it_costs_few_parameters():
    net = keras.Sequential(
        [keras.Input((784,)), *(layers.Dense(n) for n in (512, 512, 10))]
    )
    model = BatchEnsemble(net, 4)
    assert net.count_params() == 669_706
    assert model.count_params() == 684_176


# Orders of their own.


def test_independent_members_see_all_rows_in_their_own_order():
    model = ensemble(member_batches="independent")
    x, y, _ = data(10)
    x[:, 0] = np.arange(10)
    arguments = {
        **dict.fromkeys(("y", "sample_weight", "validation_data")),
        "x": x, "y": y, "batch_size": 4, "validation_split": 0.0, "shuffle": True,
        "initial_epoch": 0, "validation_batch_size": None,
    }  # fmt: skip
    batches = model.prepare_fit(arguments)["x"]
    epochs = []
    for _ in range(2):
        found = [batches[i] for i in range(len(batches))]
        for rows, labels in found:
            np.testing.assert_array_equal(labels, y[rows[:, 0].astype(int)])
        blocks = [rows[:, 0].reshape(MEMBERS, -1) for rows, _ in found]
        assert [b.shape[1] for b in blocks] == [4, 4, 2]
        epochs.append(np.concatenate(blocks, 1))
        batches.on_epoch_end()
    for orders in epochs:
        np.testing.assert_array_equal(
            np.sort(orders), [np.arange(10)] * MEMBERS
        )
        assert len({tuple(o) for o in orders}) == MEMBERS
    assert (epochs[0] != epochs[1]).any()
    # Without a seed in others, and saved with the model.
    net = mlp()
    first, second = (
        BatchEnsemble(net, MEMBERS, member_batches="independent")
        for _ in range(2)
    )
    copy = BatchEnsemble.from_config(first.get_config())
    a, b, c = (
        m.prepare_fit(arguments)["x"].orders for m in (first, copy, second)
    )
    assert (a == b).all() and (a != c).any()
    # Validation data come before a split, as in Keras.
    given = {"validation_split": 0.5, "validation_data": (x[:3], y[:3])}
    both = model.prepare_fit({**arguments, **given})
    assert both["x"].rows == 10 and len(both["validation_data"][0]) == 3


@pytest.mark.parametrize("member_batches", ["split", "independent"])
def test_fit_with_validation_weights_and_a_last_smaller_batch(member_batches):
    x, y, sample_weight = data(27)
    model = ensemble(member_batches=member_batches)
    history = model.fit(
        x, y, sample_weight=sample_weight, validation_split=0.25, batch_size=8,
        epochs=2, verbose=0,
    ).history  # fmt: skip
    assert np.isfinite([*history["loss"], *history["val_loss"]]).all()
    # The last rows, as Keras splits.
    kept = 20
    expected = model.evaluate(
        x[kept:], y[kept:], sample_weight=sample_weight[kept:], verbose=0
    )
    np.testing.assert_allclose(history["val_loss"][-1], expected[0], rtol=1e-5)


# An ordinary model.


@pytest.mark.parametrize("member_batches", ["tile", "split", "independent"])
def test_resumed_is_unbroken_bit_for_bit(member_batches, tmp_path):
    x, y, _ = data(20)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}

    def start():
        net = mlp()
        model = BatchEnsemble(
            net,
            MEMBERS,
            member_batches=member_batches,
            fast_learning_rate=0.5,
            seed=2,
        )
        model.compile(
            keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy"
        )
        return model

    unbroken, model = start(), start()
    unbroken.fit(x, y, epochs=4, **options)
    model.fit(x, y, epochs=2, **options)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    model.fit(x, y, epochs=4, initial_epoch=2, **options)
    for a, b in zip(arrays(unbroken.variables), arrays(model.variables)):
        np.testing.assert_array_equal(a, b)


@slow_to_compile
def test_it_is_attached_with_sam_and_mix_up():
    x, y, _ = data(22)
    model = dlkit.attach(
        BatchEnsemble(mlp(), MEMBERS, member_batches="split"),
        dlkit.layers.MixUp(0.4, num_classes=3, seed=1),
    )
    model.compile(
        dlkit.optimizers.SAM(
            keras.optimizers.SGD(0.5), rho=0.05, micro_batches=2
        ),
        "categorical_crossentropy",
        metrics=["accuracy"],
    )
    losses = model.fit(x, y, batch_size=8, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert model.predict(x, verbose=0).shape == (22, 3)
    with pytest.raises(ValueError, match="multiple of ensemble_size=4"):
        model.fit(x, y, batch_size=10, verbose=0)


def test_sam_of_an_ensemble_is_that_of_float64():
    """Both gradients of the mean loss, by finite differences."""
    x, y, _ = data(6)
    start = ensemble()
    weights = [w.astype("float64") for w in arrays(start.trainable_weights)]
    model = dlkit.attach(start)
    model.compile(
        dlkit.optimizers.SAM(keras.optimizers.SGD(1.0), rho=0.1),
        "sparse_categorical_crossentropy",
    )
    model.train_on_batch(x, y)
    names = [v.path for v in start.trainable_weights]

    def loss(values):
        w = dict(zip(names, values))

        def layer(h, name, m):
            kernel, r, s, b = (
                next(v for k, v in w.items() if k.endswith(f"{name}/{part}"))
                for part in ("kernel", "input_scale", "output_scale", "bias")
            )
            return ((h * r[m, 0]) @ kernel) * s[m, 0] + b[m]

        total = 0.0
        for m in range(MEMBERS):
            p = softmax(
                layer(
                    np.tanh(layer(x.astype("float64"), "hidden", m)), "head", m
                )
            )
            total -= np.log(p[np.arange(6), y]).mean() / MEMBERS
        return total

    def gradient(values):
        result = []
        for i, w in enumerate(values):
            g = np.zeros_like(w)
            for place in np.ndindex(w.shape):
                pair = []
                for step in (1e-5, -1e-5):
                    moved = [v.copy() for v in values]
                    moved[i][place] += step
                    pair.append(loss(moved))
                g[place] = (pair[0] - pair[1]) / 2e-5
            result.append(g)
        return result

    g = gradient(weights)
    norm = np.sqrt(sum((a**2).sum() for a in g))
    at_e = gradient([w + 0.1 * a / norm for w, a in zip(weights, g)])
    for v, w, a in zip(arrays(start.trainable_weights), weights, at_e):
        np.testing.assert_allclose(v, w - a, atol=2e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    x, y, _ = data(24)
    model = ensemble(mlp(), fast_learning_rate=0.5)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (
        policy == "mixed_float16"
    )
    history = model.fit(x, y, epochs=3, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert {v.dtype for v in model.trainable_weights} == {"float32"}


if BACKEND == "tensorflow":

    def test_xla_is_the_graph():
        x, y, _ = data(22)
        results = []
        for jit_compile in (False, True):
            model = ensemble(member_batches="split")
            model.compile(
                "sgd",
                "sparse_categorical_crossentropy",
                jit_compile=jit_compile,
            )
            model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
            results.append(arrays(model.trainable_weights))
        for a, b in zip(*results):
            np.testing.assert_allclose(a, b, atol=1e-5)


@slow_to_compile
def test_exported(tmp_path):
    net, x = convolutional()
    x = x.astype("float32")
    model = BatchEnsemble(net, 2)
    expected = model.predict(x, verbose=0)
    if BACKEND == "torch":
        return  # Keras exports it by ways of its own
    import tensorflow as tf

    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(
        served.serve(tf.constant(x)), expected, atol=1e-5
    )


# Learning rates by tag.


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_a_multiplier_is_a_learning_rate(kind):
    """Weights with c = 0.25 move as all do at a quarter of the rate."""
    x = data(24)[0]
    results = {}
    for name, rate, factor in (("own", 0.04, 0.25), ("all", 0.01, None)):
        net = keras.Sequential(
            [keras.Input((5,)), layers.Dense(2, use_bias=False)]
        )
        net.layers[0].kernel.assign(np.full((5, 2), 0.3))
        options = {"momentum": 0.9} if kind == "SGD" else {"weight_decay": 0.1}
        optimizer = getattr(keras.optimizers, kind)(rate, **options)
        if factor is not None:
            net.layers[0].kernel.learning_rate_multiplier = factor
            optimizer = dlkit.optimizers.LearningRateMultiplier(optimizer)
        net.compile(optimizer, "mse")
        net.fit(x, np.zeros((24, 2)), batch_size=8, shuffle=False, verbose=0)
        results[name] = arrays(net.weights)[0]
    if kind == "SGD":
        # The second gradient is taken at the same weights: all of it is equal.
        np.testing.assert_allclose(results["own"], results["all"], atol=1e-6)
    else:
        np.testing.assert_allclose(results["own"], results["all"], atol=2e-6)


def test_a_multiplier_of_zero_freezes_and_one_does_nothing():
    x, y, _ = data(16)
    model = ensemble(fast_learning_rate=0.0)
    assert isinstance(model.optimizer, dlkit.optimizers.LearningRateMultiplier)
    own = [
        v
        for v in model.trainable_weights
        if hasattr(v, "learning_rate_multiplier")
    ]
    kernels = [v for v in model.trainable_weights if v.name == "kernel"]
    assert len(own) == 6 and len(kernels) == 2
    before = arrays([*own, *kernels])
    model.fit(x, y, verbose=0)
    same = [(a == b).all() for a, b in zip(before, arrays([*own, *kernels]))]
    assert same == [True] * 6 + [False] * 2
    assert not isinstance(
        ensemble().optimizer, dlkit.optimizers.LearningRateMultiplier
    )
    with pytest.raises(ValueError, match="use_ema=True"):
        dlkit.optimizers.LearningRateMultiplier(
            keras.optimizers.SGD(use_ema=True)
        )
    optimizer = dlkit.optimizers.LearningRateMultiplier("sgd")
    own[0].learning_rate_multiplier = float("nan")
    with pytest.raises(ValueError, match="at least 0. Received: nan"):
        optimizer.build(own)
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        return  # the rest needs Keras 3.15
    own[0].learning_rate_multiplier = 0.5
    parts = keras.optimizers.OptimizerMap(keras.optimizers.SGD(use_ema=True))
    optimizer = dlkit.optimizers.LearningRateMultiplier(
        keras.optimizers.MultiOptimizer(parts)
    )
    with pytest.raises(ValueError, match="use_ema=True"):
        optimizer.build(own)


# What cannot be.


class Subclassed(keras.Model):
    def call(self, x):
        return x


@keras.saving.register_keras_serializable("tests")
class Own(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="w")

    def call(self, x):
        return x * self.scale


def test_what_cannot_be_is_said_at_once():
    net = mlp()
    for arguments, error, message in (
        ((net, 0), ValueError, "at least 1. Received: ensemble_size=0"),
        ((net, 2.0), TypeError, "ensemble_size=2.0"),
        (("net", 2), TypeError, "must be a `keras.Model`"),
        ((Subclassed(), 2), ValueError, "not built"),
        ((keras.Sequential([layers.Dense(2)]), 2), ValueError, "not built"),
    ):
        with pytest.raises(error, match=message):
            BatchEnsemble(*arguments)
    for options, message in (
        ({"member_batches": "all"}, "member_batches='all'"),
        ({"average": "median"}, "average='median'"),
        ({"convert": False}, "which has none. Say `convert=True`"),
        ({"shared": "("}, r"shared='\('"),
        ({"shared": "."}, "must find a layer"),
        ({"rank": 0}, "rank=0"),
        ({"fast_learning_rate": -1.0}, "fast_learning_rate=-1.0"),
        ({"fast_initializer": "signs"}, "fast_initializer='signs'"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchEnsemble(net, 2, **options)
    built = Subclassed()
    built.built = True
    with pytest.raises(ValueError, match="Sequential or Functional"):
        BatchEnsemble(built, 2)
    with pytest.raises(ValueError, match=r"ensemble_size=3 and \{'hidden': 2"):
        BatchEnsemble(BatchEnsemble(net, 2).network, 3, convert=False)


def test_layers_that_are_not_known_are_named_all_of_them():
    net = keras.Sequential(
        [
            keras.Input((6, 4)),
            Own(name="own"),
            layers.Bidirectional(layers.GRU(3), name="both_ways"),
            layers.PReLU(name="p"),
            layers.Dense(2, lora_rank=1, name="low_rank"),
            # Other backends do not have it.
            layers.BatchNormalization(
                synchronized=BACKEND == "tensorflow", name="of_all"
            ),
            layers.Dense(2),
        ]
    )
    messages = [
        r"'own' \(Own\), 'both_ways' \(Bidirectional\), 'p' \(PReLU\)",
        r"'low_rank' \(Dense: DenseBatchEnsemble does not know `lora_rank`",
        r"shared='\^own\$.*\^low_rank\$",
    ]
    if BACKEND == "tensorflow":
        messages.append(r"'of_all' \(BatchNormalization: .*synchronized=True")
    for message in messages:
        with pytest.raises(ValueError, match=message):
            BatchEnsemble(net, 2)


class Batches(keras.utils.PyDataset):
    """Of the rows, but for the last ones."""

    def __init__(self, rows, total=22):
        super().__init__()
        self.rows, (self.x, self.y, _) = rows, data(total)

    def __len__(self):
        return -(-len(self.x) // self.rows)

    def __getitem__(self, index):
        part = slice(index * self.rows, (index + 1) * self.rows)
        return self.x[part], self.y[part]


def generator(rows):
    batches = Batches(rows)
    return (batches[i] for i in range(len(batches)))


def torch_loader(rows, **options):
    torch = pytest.importorskip("torch")
    x, y, _ = data(22)
    rows_of = torch.utils.data.TensorDataset(
        torch.from_numpy(x), torch.from_numpy(y)
    )
    return torch.utils.data.DataLoader(rows_of, rows, **options)


def torch_sampler(rows):
    torch = pytest.importorskip("torch")
    sampler = torch.utils.data.BatchSampler(range(22), rows, drop_last=False)
    return torch_loader(1, batch_sampler=sampler)


def tf_data(rows):
    tf = pytest.importorskip("tensorflow")
    x, y, _ = data(22)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(rows).prefetch(1)


@slow_to_compile
@pytest.mark.parametrize(
    "source",
    [
        Batches,
        generator,
        torch_loader,
        torch_sampler,
        tf_data,
        lambda rows: tf_data(rows).map(lambda x, y: (x, y)),
    ],
)
def test_batches_that_cannot_be_split_are_refused(source):
    model = ensemble(member_batches="split")
    before = arrays(model.weights)
    # Of the second a data set says it that finds out on the way.
    received = r"(?s)Received: (batch_size=10. Take 8|the batch size.*10)"
    for _ in range(2):  # not only a first time
        with pytest.raises(Exception, match=received):
            model.fit(source(10), shuffle=False, verbose=0)
    for a, b in zip(before, arrays(model.weights)):
        np.testing.assert_array_equal(a, b)
    # Not from 0 where TensorFlow counts a step that has no batch.
    start = int(arrays([model.optimizer.iterations])[0])
    model.fit(source(8), steps_per_epoch=3, shuffle=False, verbose=0)
    assert int(arrays([model.optimizer.iterations])[0]) == start + 3


def test_rows_that_cannot_be_split_or_ordered_are_refused():
    x, y, _ = data(22)
    model = ensemble(member_batches="split")
    before = arrays(model.weights)
    for net in (model, dlkit.attach(model)):
        for train in (
            lambda: net.fit(x, y, batch_size=10, verbose=0),  # noqa: B023
            lambda: net.train_on_batch(x[:10], y[:10]),  # noqa: B023
        ):
            with pytest.raises(
                ValueError, match="Received: batch_size=10. Take 8 or 12"
            ):
                train()
    with pytest.raises(ValueError, match="takes arrays"):
        ensemble(member_batches="independent").fit(iter([(x, y)]), verbose=0)
    for a, b in zip(before, arrays(model.weights)):
        np.testing.assert_array_equal(a, b)
    model.train_on_batch(x[:12], y[:12])
    model.train_on_batch(x[12:], y[12:])  # the last ones: fewer


def test_what_is_not_trained_is_copied_in_any_case():
    net = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(5, 4, trainable=False, name="frozen"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model = BatchEnsemble(net, 2, copy_weights=False, shared="frozen")
    frozen = model.network.get_layer("frozen")
    np.testing.assert_array_equal(
        ops.convert_to_numpy(frozen.embeddings),
        ops.convert_to_numpy(net.get_layer("frozen").embeddings),
    )


def test_statistics_of_batches_are_a_members_own():
    x = data(24)[0]
    net = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4),
            layers.BatchNormalization(
                center=False, scale=False, momentum=0.0, name="bare"
            ),
            layers.Dense(3),
        ]
    )
    net.layers[1].moving_mean.assign(np.full(4, 7.0))
    fresh = BatchEnsemble(net, MEMBERS, copy_weights=False)
    bare = fresh.network.get_layer("bare")
    np.testing.assert_array_equal(
        *arrays([bare.moving_mean, bare.moving_mean * 0])
    )
    model = ensemble(net, "mse")
    model.optimizer.learning_rate = 0.0
    model.train_on_batch(x, x[:, :3])
    for plain in model.fold():
        dense, normalization, _ = plain.layers
        hidden = ops.convert_to_numpy(dense(x))
        mean, variance = arrays(normalization.variables)
        np.testing.assert_allclose(mean, hidden.mean(0), atol=1e-5)
        np.testing.assert_allclose(variance, hidden.var(0), rtol=1e-4)


def test_one_loss_scaler_at_most():
    keras.config.set_dtype_policy("mixed_float16")
    net = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model = BatchEnsemble(net, 2, fast_learning_rate=0.5)
    scaler = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    model.compile(scaler, "mse")
    scalers, optimizer = 0, model.optimizer
    while optimizer is not None:
        scalers += isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        optimizer = getattr(optimizer, "inner_optimizer", None)
    assert scalers == 1


def test_an_adapted_normalization_normalizes():
    net, x = adapted()
    model = BatchEnsemble(
        net, 2, member_batches="split", fast_initializer="ones"
    )
    for outputs in (model.predict(x, verbose=0), *model.member_predict(x)):
        np.testing.assert_allclose(
            outputs, net.predict(x, verbose=0), rtol=1e-5, atol=1e-6
        )
