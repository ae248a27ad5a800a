import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests.running import slow_to_compile

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32") + (X[:, 1] > 0.5)
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def two_rates(first=0.1, second=0.1):
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("needs Keras 3.15")
    sgd = keras.optimizers.SGD
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            sgd(first), {".*diffusion.*": sgd(second)}
        )
    )


def net(
    built=True,
    stem=None,
    block=None,
    diffusion=None,
    head=None,
    sigma=0.5,
    **kw,
):
    first = [keras.Input((4,))] if built else []
    return dlkit.models.SDENet(
        stem or keras.Sequential([*first, layers.Dense(3, "tanh")]),
        block
        or dlkit.layers.SDEBlock(
            layers.Dense(3, "tanh"),
            diffusion
            or layers.Dense(1, "sigmoid", dtype="float32", name="diffusion"),
            num_steps=4,
            t_end=2.0,
            sigma=sigma,
            sigma_inference=3.0,
        ),
        head or layers.Dense(3, dtype="float32"),
        **kw,
    )


def compiled(optimizer=None, loss=CROSSENTROPY, **arguments):
    model = net(**arguments)
    model.compile(
        optimizer or keras.optimizers.SGD(0.1), loss, metrics=["accuracy"]
    )
    return model


def fit(model, **arguments):
    arguments = {"epochs": 2, "batch_size": 8, "shuffle": False, **arguments}
    return model.fit(X, Y, verbose=0, **arguments).history


def weights(model):
    return [numpy(w).copy() for w in model.trainable_weights]


# One step, by hand in float64. Unknown inputs are those of a function, and
# without noise in the block (sigma 0) nothing is random.


def opposite(x):
    return 1.0 - 2.0 * x


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def losses(parameters, x, y):
    """The loss of the task, and those of the diffusion."""
    sk, sb, fk, fb, gk, gb, hk, hb = parameters
    hidden = np.tanh(x @ sk + sb)
    state = hidden
    for _ in range(4):
        state = state + np.tanh(state @ fk + fb) * 0.5
    logits = state @ hk + hb
    logits = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    other = np.tanh(opposite(x) @ sk + sb)
    task = -logits[np.arange(len(y)), y].mean()
    known = -np.log(1 - sigmoid(hidden @ gk + gb)).mean()
    unknown = -np.log(sigmoid(other @ gk + gb)).mean()
    return task, known, unknown


def gradient(function, parameters, which):
    gradients = []
    for index in which:
        g = np.zeros_like(parameters[index])
        for place in np.ndindex(*g.shape):
            values = []
            for move in (1e-5, -1e-5):
                moved = [p.copy() for p in parameters]
                moved[index][place] += move
                values.append(function(moved))
            g[place] = (values[0] - values[1]) / 2e-5
        gradients.append(g)
    return gradients


TASK, DIFFUSION = (0, 1, 2, 3, 6, 7), (4, 5)
RATE, RATE_OF_DIFFUSION, WEIGHT = 0.1, 0.03, 0.7


def expected_step(parameters, alternating):
    after = [p.copy() for p in parameters]
    task = gradient(lambda p: losses(p, X, Y)[0], parameters, TASK)
    for index, g in zip(TASK, task):
        after[index] -= RATE * g
    seen = after if alternating else parameters
    own = gradient(lambda p: sum(losses(p, X, Y)[1:]), seen, DIFFUSION)
    for index, g in zip(DIFFUSION, own):
        after[index] -= RATE_OF_DIFFUSION * WEIGHT * g
    return after


@pytest.mark.parametrize("alternating", [False, True])
def test_one_step_by_hand(alternating):
    model = compiled(
        two_rates(RATE, RATE_OF_DIFFUSION),
        sigma=0.0,
        ood=opposite,
        ood_weight=WEIGHT,
        alternating=alternating,
    )
    before = [w.astype("float64") for w in weights(model)]
    history = fit(model, epochs=1, batch_size=24)
    for found, value in zip(weights(model), expected_step(before, alternating)):
        np.testing.assert_allclose(found, value, atol=2e-5)
    task, known, unknown = losses(before, X, Y)
    if alternating:
        moved = expected_step(before, True)
        _, known, unknown = losses([*moved[:4], *before[4:6], *moved[6:]], X, Y)
        np.testing.assert_allclose(history["loss"], task, rtol=1e-5)
    else:
        total = task + WEIGHT * (known + unknown)
        np.testing.assert_allclose(history["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(history["loss_in"], known, rtol=1e-5)
    np.testing.assert_allclose(history["loss_out"], unknown, rtol=1e-5)


def test_the_two_orders_differ():
    before = [w.astype("float64") for w in weights(net())]
    pairs = zip(expected_step(before, True), expected_step(before, False))
    assert max(np.abs(a - b).max() for a, b in pairs) > 1e-4


def test_noise_reaches_the_stem_and_not_the_diffusion():
    model = compiled(sigma=5.0, ood_weight=0.0)
    before = weights(model)
    fit(model)
    moved = [np.abs(a - b).max() for a, b in zip(weights(model), before)]
    assert max(moved[4:6]) == 0
    assert min(moved[i] for i in TASK) > 1e-4


@pytest.mark.parametrize("alternating", [False, True])
def test_fit_trains_with_noise(alternating):
    def trained(sigma):
        keras.utils.set_random_seed(1)
        model = compiled(two_rates(), sigma=sigma, alternating=alternating)
        fit(model)
        return weights(model)

    quiet, noisy = trained(0.0), trained(5.0)
    assert max(np.abs(a - b).max() for a, b in zip(quiet, noisy)) > 1e-3


@pytest.mark.parametrize("alternating", [False, True])
def test_every_pass_of_fit_is_one_of_training(alternating):
    seen = []

    class Watch(layers.Layer):
        def call(self, x, training=None):
            seen.append(training)
            return x

    stem = keras.Sequential([keras.Input((4,)), Watch(), layers.Dense(3)])
    model = compiled(two_rates(), stem=stem, alternating=alternating)
    model.evaluate(X, Y, verbose=0)  # builds what there is to build
    seen.clear()
    model.train_on_batch(X, Y)
    # On inputs and on unknown ones, and once more in the second phase.
    assert len(seen) >= 2 + alternating and all(seen)


@slow_to_compile
def test_the_diffusion_learns_what_is_known():
    keras.utils.set_random_seed(0)
    stem = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model = compiled(
        keras.optimizers.Adam(0.05), ood=lambda x: x + 5.0, stem=stem
    )
    history = fit(model, epochs=40)
    assert history["loss_in"][-1] + history["loss_out"][-1] < 0.5
    known = model.predict_uncertainty(X, verbose=0)
    unknown = model.predict_uncertainty(X + 5, verbose=0)
    assert known["diffusion"].mean() < 0.3 < 0.7 < unknown["diffusion"].mean()
    # How much more depends on the drift, of which nothing is asked.
    assert unknown["epistemic"].mean() > known["epistemic"].mean()


def test_predict_and_evaluate_follow_the_drift():
    model = compiled()
    history = fit(model, validation_data=(X, Y))
    first, second = (model.predict(X, verbose=0) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    found = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert set(found) == {"loss", "accuracy"}
    assert {"loss_in", "val_loss"} <= set(history)
    assert "val_loss_in" not in history
    exact = float(numpy(CROSSENTROPY(Y, first)))
    np.testing.assert_allclose(found["loss"], exact, rtol=1e-5)


def test_uncertainty_without_noise_is_the_prediction():
    model = compiled()
    model.block.sigma_inference.assign(0.0)
    found = model.predict_uncertainty(X, 3, batch_size=7, verbose=0)
    p = numpy(ops.softmax(model.predict(X, verbose=0)))
    np.testing.assert_allclose(found["mean"], p, atol=1e-6)
    np.testing.assert_allclose(found["std"], 0, atol=1e-6)
    np.testing.assert_allclose(found["epistemic"], 0, atol=1e-6)
    np.testing.assert_allclose(found["total"], -(p * np.log(p)).sum(1), 1e-4)


@slow_to_compile
def test_stem_and_diffusion_are_called_once_for_all_samples():
    seen = {}

    class Noted(layers.Layer):
        def call(self, x):
            seen.setdefault(self.name, []).append(x.shape[0])
            return x

    def noted(name, *others):
        return keras.Sequential([*others[:-1], Noted(name=name), others[-1]])

    model = net(
        stem=noted("stem", keras.Input((4,)), layers.Dense(3)),
        diffusion=noted("diffusion", layers.Dense(1, "sigmoid")),
        head=noted("head", layers.Dense(3)),
    )
    model.compile(run_eagerly=True)
    for _ in range(2):  # the first builds
        seen.clear()
        model.predict_uncertainty(X, 10, verbose=0)
    assert seen == {"stem": [24], "diffusion": [24], "head": [240]}


@slow_to_compile
def test_regression():
    model = compiled(
        loss=dlkit.losses.GaussianNegativeLogLikelihood(),
        head=dlkit.layers.MeanAndScale(2),
        outputs="mean_and_scale",
    )
    model.compile("adam", model.loss)
    model.fit(X, X[:, :2], verbose=0)
    found = model.predict_uncertainty(X, 4, verbose=0)
    assert found["mean"].shape == found["total"].shape == (24, 2)
    scale = model.predict(X, verbose=0)[:, 2:]
    assert (scale > 0).all()
    np.testing.assert_allclose(
        found["total"], found["aleatoric"] + found["epistemic"], rtol=1e-5
    )


def test_gaussian_likelihood_against_numpy():
    y, mean = RNG.normal(size=(2, 6, 2))
    scale = RNG.uniform(0.5, 2, (6, 2))
    loss = dlkit.losses.GaussianNegativeLogLikelihood()
    density = np.exp(-(((y - mean) / scale) ** 2) / 2)
    density /= scale * np.sqrt(2 * np.pi)
    np.testing.assert_allclose(
        float(numpy(loss(y, np.concatenate([mean, scale], 1)))),
        -np.log(density).mean(),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="mean and a scale for each"):
        loss(y, mean)


# Where unknown inputs come from.


class Batches:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return 10.0 * index + np.zeros((4, 4)), np.zeros(4)


@pytest.mark.parametrize(
    "ood",
    [
        "gaussian",
        opposite,
        layers.GaussianNoise(1.0),
        RNG.normal(size=(50, 4)),
        Batches(),
    ],
)
def test_sources(ood):
    model = compiled(ood=ood)
    assert np.isfinite(fit(model)["loss_out"]).all()


def test_rows_of_a_data_set_are_drawn():
    model = net(ood=Batches())
    drawn = np.concatenate([numpy(model.unknown(X)) for _ in range(4)])
    assert set(np.unique(drawn)) == {0.0, 10.0, 20.0}


def test_rows_of_data_are_weights():
    """A config has no room for them: a clone trains once it has them."""
    model = compiled(ood=X)
    clone = keras.models.clone_model(model)
    clone.compile("sgd", CROSSENTROPY)
    with pytest.raises(ValueError, match="rows that are all 0.*clone_model"):
        fit(clone)
    clone.set_weights(model.get_weights())
    fit(clone)


def test_the_noise_has_its_scale():
    model = net(ood_scale=3.0)
    noise = numpy(model.unknown(np.zeros((2000, 4), "float32")))
    assert abs(noise.std() - 3.0) < 0.1


@pytest.mark.parametrize(
    "ood",
    [
        lambda x: x[:, :2],
        lambda x: [x],
        lambda x: ops.cast(x, "int32"),
        np.zeros((5, 3)),
        {"a": np.zeros((5, 4))},
        np.zeros((5, 4), "uint8"),
    ],
)
@pytest.mark.parametrize("kind", ["built", "lazy", "alternating"])
def test_unknown_inputs_unlike_the_inputs_are_refused(ood, kind):
    alternating = kind == "alternating"
    optimizer = two_rates() if alternating else None
    model = compiled(
        optimizer, ood=ood, built=kind != "lazy", alternating=alternating
    )
    before = weights(model)
    with pytest.raises(
        ValueError, match=r"shape of the inputs.*\(4,\) float32; from `ood`"
    ):
        # In the order of the paper also where `fit` cannot look at a batch.
        model.prepare_step((X, Y)) if alternating else fit(model)
    for a, b in zip(before, weights(model)):
        np.testing.assert_array_equal(a, b)


def test_unknown_inputs_are_looked_at_in_all_data():
    tf = pytest.importorskip("tensorflow")

    class Batch(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return X, Y

    for data in (
        (X, Y),
        (Batch(),),
        ((batch for batch in [(X, Y)]),),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),),
    ):
        model = net(ood=lambda x: x[:, :2])
        model.compile("sgd", CROSSENTROPY)
        with pytest.raises(ValueError, match="shape of the inputs"):
            model.fit(*data, verbose=0)
        assert not model.optimizer.built
    # A function that cannot be traced is left to the step.
    net(ood=np.asarray).unknown.check(X)


@slow_to_compile
def test_unknown_inputs_of_a_structure_are_saved_with_it(tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    stem = keras.Model({"a": a, "b": b}, layers.Dense(3)(a + b))
    x = {"a": X, "b": -X}
    model = compiled(stem=stem, ood=x)
    model.save(tmp_path / "net.keras")
    model = keras.saving.load_model(tmp_path / "net.keras")
    assert np.isfinite(model.fit(x, Y, verbose=0).history["loss_out"]).all()
    drawn = {name: numpy(rows) for name, rows in model.unknown(x).items()}
    np.testing.assert_array_equal(drawn["a"], -drawn["b"])
    with pytest.raises(ValueError, match="a: .* float32, b: .*; from `ood` 0:"):
        compiled(stem=stem, ood=[X, X]).fit(x, Y, verbose=0)


@slow_to_compile
def test_images_of_bytes():
    """Unknown ones are floats, which an `Input` of bytes would cut off."""
    x = RNG.integers(0, 256, (24, 4)).astype("uint8")

    def model(dtype, ood):
        inputs = keras.Input((4,), dtype=dtype)
        return compiled(
            stem=keras.Sequential(
                [inputs, layers.Rescaling(1 / 255), layers.Dense(3)]
            ),
            ood=ood,
        )

    def noisy(x):
        return ops.cast(x, "float32") - 0.5

    for ood in (noisy, x):
        unknown = numpy(model("float32", ood).unknown(x))
        assert (unknown % 1 == (0.5 if ood is noisy else 0)).all()
    history = model("float32", "gaussian").fit(x, Y, verbose=0).history
    assert np.isfinite(history["loss_out"]).all()
    with pytest.raises(ValueError, match="`keras.Input` of float32"):
        model("uint8", "gaussian").fit(x, Y, verbose=0)
    for dtype, ood in (("uint8", noisy), ("float32", X)):
        with pytest.raises(ValueError, match="inputs of .4,. uint8; from .* f"):
            model(dtype, ood).fit(x, Y, verbose=0)


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"diffusion": layers.Dense(1)}, ValueError, "between 0 and 1.*linear"),
        (
            {
                "diffusion": layers.Dense(
                    1,
                    lambda x: x**2,
                    kernel_initializer=keras.initializers.RandomNormal(0, 1e-3),
                )
            },
            ValueError,
            "between 0 and 1.*values from",
        ),
        (
            {"diffusion": layers.Dense(1, "softmax")},
            ValueError,
            "between 0 and 1.*softmax",
        ),
        (
            {
                "block": dlkit.layers.SDEBlock(
                    layers.Dense(3), layers.Dense(1), isolate_diffusion=False
                )
            },
            ValueError,
            "isolate_diffusion=True",
        ),
        ({"ood": "uniform"}, TypeError, "ood"),
        ({"ood": 3}, TypeError, "ood"),
        ({"ood": np.zeros((0, 4))}, ValueError, "at least one row"),
        ({"ood_scale": -1.0}, ValueError, "ood_scale"),
        ({"ood_weight": -1.0}, ValueError, "ood_weight"),
        ({"outputs": "classes"}, ValueError, "outputs"),
        ({"outputs": "mean_and_scale"}, ValueError, "as many means as"),
        ({"head": "dense"}, TypeError, "head"),
        ({"sigma": -1.0}, ValueError, "sigma"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        net(**arguments)


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_a_lazy_net_is_checked_before_its_first_step(kind):
    diffusion = layers.Dense(1, kind)
    if kind == "relu":
        diffusion = keras.Sequential([layers.Dense(1), layers.ReLU()])
    model = compiled(built=False, diffusion=diffusion)
    with pytest.raises(
        (ValueError, RuntimeError), match=f"between 0 and 1.*{kind}"
    ):
        fit(model)


def test_outputs_that_are_others_are_refused():
    model = compiled(outputs="probabilities")
    with pytest.raises(ValueError, match="outputs='logits'"):
        model.predict_uncertainty(X, verbose=0)
    with pytest.raises(ValueError, match="samples"):
        model.predict_uncertainty(X, 1)
    model = compiled(head=layers.Dense(3, "softmax"))
    with pytest.raises(ValueError, match="outputs='probabilities'"):
        model.predict_uncertainty(X[:1], 2, verbose=0)
    # Logits whose sum is 1, or nearly, are logits.
    model = compiled(head=layers.Dense(3, kernel_initializer="zeros"))
    for bias in ([2.0, -1.5, 0.5], [0.3, 0.5, 0.205]):
        model.head.bias.assign(bias)
        found = model.predict_uncertainty(X[:1], 2, verbose=0)["mean"][0]
        np.testing.assert_allclose(
            found, np.exp(bias) / np.exp(bias).sum(), 1e-5
        )


def test_a_call_in_training_elsewhere_leaves_nothing_to_evaluation():
    model = compiled()
    expected = model.evaluate(X, Y, verbose=0)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.function(lambda x: model(x, training=True))(X)
    else:
        model(X, training=True)
    assert model.evaluate(X, Y, verbose=0) == expected
    assert float(numpy(model.loss_in.count)) == 0
    fit(model)


def test_alternating_needs_two_optimizers():
    with pytest.raises(ValueError, match="MultiOptimizer"):
        compiled(alternating=True)
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("the rest needs Keras 3.15")
    one = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1))
    )
    with pytest.raises(ValueError, match="optimizer of their own"):
        fit(compiled(one, alternating=True))
    with pytest.raises(ValueError, match="train_step"):
        dlkit.attach(net(alternating=True))


@pytest.mark.parametrize("frozen", ["diffusion", "task"])
def test_alternating_with_one_side_frozen(frozen):
    model = compiled(two_rates(), alternating=True)
    of_diffusion = [model.block.diffusion]
    of_task = [model.stem, model.block.drift, model.head]
    for part in of_diffusion if frozen == "diffusion" else of_task:
        part.trainable = False
    model.compile(model.optimizer, CROSSENTROPY)
    before = [numpy(w).copy() for w in model.weights]
    history = fit(model, epochs=1)
    assert np.isfinite([history["loss_in"], history["loss"]]).all()
    moved = {
        w.path for w, a in zip(model.weights, before) if (numpy(w) != a).any()
    }
    assert moved == {w.path for w in model.trainable_weights} != set()


# An ordinary Keras model.


def test_nothing_is_traced_again_as_sigma_changes():
    if keras.config.backend() == "torch":
        return
    traces = []

    class Traced(layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    stem = keras.Sequential([keras.Input((4,)), layers.Dense(3), Traced()])
    model = compiled(stem=stem)
    schedule = dlkit.callbacks.SigmaSchedule(lambda epoch: 0.5 * epoch)
    fit(model, epochs=2, callbacks=[schedule])
    first = len(traces)
    fit(model, epochs=6, callbacks=[schedule])
    assert len(traces) == first
    assert float(numpy(model.block.sigma)) == 2.5


def test_sigma_schedule():
    model = compiled()
    schedule = dlkit.callbacks.SigmaSchedule
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            float(numpy(model.block.sigma))
        )
    )
    fit(model, epochs=4, callbacks=[schedule({1: 0.25, 3: 2.0}), watch])
    assert seen == [0.5, 0.25, 0.25, 2.0]
    fit(model, epochs=1, callbacks=[schedule({0: 7.0}, inference=True)])
    assert float(numpy(model.block.sigma_inference)) == 7.0
    before = weights(model)
    with pytest.raises(ValueError, match="epoch 2"):
        fit(model, epochs=3, callbacks=[schedule(lambda e: 1.0 - e)])
    for a, b in zip(weights(model), before):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="epoch 0"):
        schedule({0: -1.0})
    with pytest.raises(TypeError, match="schedule"):
        schedule(0.5)


@slow_to_compile
@pytest.mark.parametrize("ood", ["gaussian", np.ones((6, 4))])
@pytest.mark.parametrize("alternating", [False, True])
def test_resumed_in_the_middle(tmp_path, ood, alternating):
    path = tmp_path / "net.keras"
    unbroken = compiled(two_rates(), ood=ood, alternating=alternating)
    fit(unbroken)
    unbroken.save(path)
    resumed = keras.saving.load_model(path)
    for model in (unbroken, resumed):
        fit(model)
    for a, b in zip(unbroken.variables, resumed.variables):
        np.testing.assert_array_equal(numpy(a), numpy(b))


def unordered_reads(graph):
    """Reads of weights that may come after the step has changed them."""
    nodes = {node.name: node for node in graph.node}

    def inputs(node):
        return [name.lstrip("^").split(":")[0] for name in node.input]

    def comes_before(first, node):
        waiting, seen = [node.name], set()
        while waiting:
            name = waiting.pop()
            if name in nodes and name not in seen:
                seen.add(name)
                waiting += inputs(nodes[name])
        return first.name in seen

    def of(*kinds):
        return [n for n in graph.node if any(kind in n.op for kind in kinds)]

    return [
        read.name
        for write in of("AssignSub", "AssignVariable", "ResourceApply")
        for read in of("ReadVariableOp")
        if inputs(read)[0] == inputs(write)[0]
        and not comes_before(read, write)
        and not comes_before(write, read)
    ]


@pytest.mark.parametrize("kind", ["joint", "alternating", "attached"])
def test_weights_are_read_before_they_are_changed(kind):
    """Of the graph as TensorFlow runs it: it drops edges of frozen reads."""
    if keras.config.backend() != "tensorflow":
        return
    import tensorflow as tf
    from tensorflow.python.eager import context

    model, optimizer = net(alternating=kind == "alternating"), "sgd"
    if kind == "alternating":
        optimizer = two_rates()
    if kind == "attached":
        model = dlkit.attach(model)
        optimizer = dlkit.optimizers.SAM(keras.optimizers.SGD(0.1))
    model.compile(optimizer, CROSSENTROPY, jit_compile=False)
    batch = tf.constant(X), tf.constant(Y)
    model.train_on_batch(X, Y)
    step = tf.function(lambda *batch: model.train_step(batch))
    step.get_concrete_function(*batch)
    context.enable_run_metadata()
    step(*batch)
    found = context.export_run_metadata()
    context.disable_run_metadata()
    graphs = [g.post_optimization_graph for g in found.function_graphs]
    assert max(len(graph.node) for graph in graphs) > 200  # it is the step
    assert [read for graph in graphs for read in unordered_reads(graph)] == []


@slow_to_compile
def test_loaded_in_a_fresh_process(tmp_path):
    model = compiled()
    fit(model)
    model.save(tmp_path / "net.keras")
    np.save(tmp_path / "x.npy", X)
    script = (
        "import keras, numpy as np, keras_dlkit; "
        f"m = keras.saving.load_model(r'{tmp_path / 'net.keras'}'); "
        f"x = np.load(r'{tmp_path / 'x.npy'}'); "
        f"np.save(r'{tmp_path / 'y.npy'}', m.predict(x, verbose=0))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    np.testing.assert_array_equal(
        np.load(tmp_path / "y.npy"), model.predict(X, verbose=0)
    )


def test_attached_with_sam_and_mix_up():
    model = dlkit.attach(net(), dlkit.layers.MixUp(0.2, num_classes=3, seed=1))
    model.compile(
        dlkit.optimizers.SAM(keras.optimizers.SGD(0.1), rho=0.1),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    before = weights(model)
    history = fit(model, validation_data=(X, Y))
    assert {"loss_in", "loss_out", "val_loss"} <= set(history)
    assert all((a != b).any() for a, b in zip(weights(model), before))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = compiled()
    history = fit(model)
    assert np.isfinite(history["loss"] + history["loss_out"]).all()
    found = model.predict_uncertainty(X, verbose=0)
    assert found["total"].dtype == "float32"
    scales = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales == (policy == "mixed_float16")


def test_export(tmp_path):
    if keras.config.backend() == "torch":
        return  # Keras exports no SavedModel there
    import tensorflow as tf

    model = compiled()
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(
        np.asarray(loaded.serve(X)), model.predict(X, verbose=0), atol=1e-5
    )


@slow_to_compile
def test_dict_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    joined = layers.Concatenate()([a, b])
    stem = keras.Model({"a": a, "b": b}, layers.Dense(3)(joined))
    model = compiled(stem=stem)
    x = {"a": X, "b": X[:, :2]}
    history = model.fit(x, Y, verbose=0).history
    assert np.isfinite(history["loss_out"]).all()
    assert model.predict_uncertainty(x, verbose=0)["mean"].shape == (24, 3)


# Keras says so of every Sequential, which sees the mask nevertheless.
@pytest.mark.filterwarnings("ignore:(?s).*was passed an input with a mask")
@pytest.mark.parametrize("at", ["start", "every"])
def test_what_is_masked_changes_nothing(at):
    """Rows with and without padding, through drift, diffusion and head."""
    known = np.array([[1, 2, 3], [4, 5, 6]])
    padded = np.pad(known, [(0, 0), (0, 2)])

    def pooled(units, *activation):
        return [
            layers.GlobalAveragePooling1D(),
            layers.Dense(units, *activation),
        ]

    class Mean(layers.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True

        def call(self, x, mask=None):
            if mask is None:  # when it is built
                return x
            weights = ops.cast(ops.expand_dims(mask, -1), x.dtype)
            total = ops.sum(weights * x, axis=1, keepdims=True)
            mean = total / ops.sum(weights, axis=1, keepdims=True)
            return mean + 0.0 * x

    model = dlkit.models.SDENet(
        keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(9, 3, mask_zero=True),
            ]
        ),
        dlkit.layers.SDEBlock(
            Mean(),
            keras.Sequential(pooled(1, "sigmoid")),
            num_steps=2,
            sigma=0.0,
            diffusion_at=at,
        ),
        keras.Sequential(pooled(3)),
        ood=lambda x: x,
    )
    model.compile(keras.optimizers.SGD(0.0), CROSSENTROPY)
    results = []
    for x in (known, padded):
        found = model.predict_uncertainty(x, 2, verbose=0)
        history = model.fit(x, np.array([0, 2]), verbose=0).history
        results.append(
            [
                *(found[name] for name in ("mean", "diffusion")),
                *(history[name] for name in ("loss", "loss_in", "loss_out")),
                model.predict(x, verbose=0),
            ]
        )
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_one_output_is_no_class():
    model = compiled(head=layers.Dense(1))
    with pytest.raises(ValueError, match="one output"):
        model.predict_uncertainty(X, verbose=0)


@slow_to_compile
def test_regularizers_of_the_diffusion_act_in_its_phase():
    """With no weight of the diffusion losses they are all there is."""

    def kernel_after(penalty):
        keras.utils.set_random_seed(0)
        diffusion = layers.Dense(
            1,
            "sigmoid",
            name="diffusion",
            kernel_initializer="ones",
            kernel_regularizer=keras.regularizers.L2(penalty),
        )
        model = compiled(
            two_rates(), alternating=True, diffusion=diffusion, ood_weight=0.0
        )
        fit(model)
        return numpy(diffusion.kernel)

    np.testing.assert_array_equal(kernel_after(0.0), 1.0)
    assert (kernel_after(0.1) < 0.99).all()
