"""What `attach` refuses, and how: before any step, with the remedy."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_dlkit as dlkit
from tests import zoo
from tests.running import assert_same
from tests.running import mostly_slow_to_compile
from tests.running import run
from tests.running import weights_of

BACKEND = keras.config.backend()


class OwnStep(keras.Sequential):
    def train_step(self, *args):
        return super().train_step(*args)


class OwnFit(keras.Sequential):
    def fit(self, *args, **kwargs):
        return super().fit(*args, **kwargs)


class OwnTest(keras.Sequential):
    def test_step(self, *args):
        return super().test_step(*args)


class OwnGradient(keras.Sequential):
    def stateless_compute_loss(self, *args, **kwargs):
        return super().stateless_compute_loss(*args, **kwargs)


class LikeATask(OwnFit):
    """With a method that those of KerasHub have, which may have a `fit`."""

    def preprocess_samples(self, x, y=None, sample_weight=None):
        return x, y, sample_weight


REFUSED = [
    (OwnStep, "train_step"),
    (OwnFit, "fit"),
    (OwnTest, "test_step"),
    (LikeATask, "fit"),
]
if keras.config.backend() == "jax":
    REFUSED.append((OwnGradient, "stateless_compute_loss"))


@pytest.mark.parametrize(("cls", "name"), REFUSED)
def test_models_with_a_step_of_their_own(cls, name):
    with pytest.raises(ValueError, match=f"{cls.__name__} with `{name}`"):
        dlkit.attach(cls([keras.Input((2,)), layers.Dense(1)]))


def test_what_is_no_model_or_no_part():
    net = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    with pytest.raises(TypeError, match="takes a `keras.Model`.*model=3"):
        dlkit.attach(3)
    with pytest.raises(TypeError, match="BatchPart.*'mixup'"):
        dlkit.attach(net, "mixup")
    with pytest.raises(TypeError, match=r"one by one.*Received: \[<MixUp"):
        dlkit.attach(net, [dlkit.layers.MixUp()])
    with pytest.raises(TypeError, match=r"compile\(optimizer=SAM"):
        dlkit.attach(net, dlkit.optimizers.SAM("sgd"))
    with pytest.raises(TypeError, match="`detach` takes.*Received: 3"):
        dlkit.detach(3)


class Prepared(keras.Sequential):
    def prepare_fit(self, folder):
        raise AssertionError(f"a method of the user's own: {folder}")


def test_a_name_of_ours_is_the_users_too():
    model = dlkit.attach(Prepared([keras.Input((2,)), layers.Dense(1)]))
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)


def test_a_model_without_an_optimizer_is_evaluated():
    net = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    net.compile(optimizer=None, loss="mse")
    x, y = np.ones((2, 2)), np.ones((2, 1))
    with pytest.warns(UserWarning, match="took over"):
        model = dlkit.attach(net)
    loss = dlkit.attach(model).evaluate(x, y, verbose=0)
    assert loss == net.evaluate(x, y, verbose=0)


def test_no_scaler_is_put_around_an_optimizer_that_was_to_have_none():
    keras.config.set_dtype_policy("mixed_float16")
    net = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    net.compile("sgd", "mse", auto_scale_loss=False)
    with pytest.warns(UserWarning, match="took over"):
        model = dlkit.attach(net)
    assert model.optimizer is net.optimizer


class OwnSparse(keras.losses.SparseCategoricalCrossentropy):
    pass


def test_parts_for_a_model_with_a_sparse_loss():
    """It may yet be compiled with another: only then it is to train."""
    net = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
    first = dlkit.attach(net)
    first.compile("sgd", OwnSparse())
    model = dlkit.attach(first, dlkit.layers.MixUp(num_classes=3))
    x, y = np.ones((3, 4)), np.arange(3)
    with pytest.raises(ValueError, match="MixUp turns.*a sparse loss"):
        model.fit(x, y, verbose=0)
    model.compile("sgd", "categorical_crossentropy")
    model.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"loss": "sparse_categorical_crossentropy"},
        {"loss": OwnSparse()},
        {"loss": keras.losses.SparseCategoricalCrossentropy()},
        {"loss": keras.losses.sparse_categorical_crossentropy},
        {"loss": "mse", "metrics": ["sparse_categorical_accuracy"]},
        {
            "loss": "mse",
            "weighted_metrics": [keras.metrics.SparseCategoricalAccuracy()],
        },
    ],
)
def test_sparse_losses_of_encoded_targets(arguments):
    net = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model = dlkit.attach(net, dlkit.layers.MixUp(num_classes=3))
    with pytest.raises(ValueError, match="CategoricalCrossentropy"):
        model.compile("sgd", **arguments)


def test_a_sparse_loss_taken_over_is_refused_at_the_first_use():
    net, data, arguments = zoo.make("sequential")
    net.compile("sgd", **arguments)
    model = dlkit.attach(net, dlkit.layers.MixUp(num_classes=3))
    for name in ("fit", "evaluate", "train_on_batch", "test_on_batch"):
        with pytest.raises(ValueError, match="CategoricalCrossentropy"):
            getattr(model, name)(data["x"], data["y"])
    model.compile("sgd", "categorical_crossentropy")
    run(model, data)


def test_a_sparse_loss_of_another_output_is_fine():
    net, data, arguments = zoo.make("list_in_list_out")
    model = dlkit.attach(net, dlkit.layers.MixUp(num_classes=[None, None]))
    model.compile("sgd", **arguments)
    part = dlkit.layers.MixUp(num_classes=[3, None])
    with pytest.raises(ValueError, match="sparse loss"):
        dlkit.attach(zoo.make("list_in_list_out")[0], part).compile(
            "sgd", **arguments
        )


SPARSE = zoo.CROSSENTROPY
NESTED = {"deep": {"kind": 3}, "pair": (None, None)}


@pytest.mark.parametrize(
    ("name", "num_classes", "arguments"),
    [
        ("list_in_list_out", [3, None], {"loss": [SPARSE, "mse"]}),
        ("list_in_list_out", {"kind": 3, "size": None}, {"loss": SPARSE}),
        (
            "list_in_list_out",
            {"kind": 3, "size": None},
            {"loss": [SPARSE, "mse"]},
        ),
        (
            "tuple_in_tuple_out",
            (3, None),
            {"loss": {"kind": SPARSE, "size": "mse"}},
        ),
        (
            "dict_in_dict_out",
            {"kind": 3, "size": None},
            {"loss": [SPARSE, "mse"]},
        ),
        (
            "dict_in_dict_out",
            {"kind": 3, "size": None},
            {
                "loss": "mse",
                "metrics": {
                    "kind": ["accuracy", "sparse_categorical_accuracy"]
                },
            },
        ),
        (
            "nested_in_nested_out",
            NESTED,
            {"loss": {"deep": {"kind": SPARSE}, "pair": ("mse", "mse")}},
        ),
        ("nested_in_nested_out", NESTED, {"loss": [SPARSE, "mse", "mse"]}),
    ],
)
def test_sparse_losses_are_found_in_any_structure(name, num_classes, arguments):
    """Those of the output that is encoded, and of no other one."""
    for classes, refused in ((num_classes, True), (None, False)):
        part = dlkit.layers.MixUp(num_classes=classes)
        model = dlkit.attach(zoo.make(name)[0], part)
        with (
            pytest.raises(ValueError, match="sparse")
            if refused
            else contextlib.nullcontext()
        ):
            model.compile("sgd", **arguments)


def test_labels_out_of_range_before_any_step():
    net, data, _ = zoo.make("sequential")
    model = dlkit.attach(net, dlkit.layers.MixUp(num_classes=3))
    model.compile("sgd", "categorical_crossentropy")
    wrong = {**data, "y": data["y"] + 1}
    with pytest.raises(ValueError, match=r"\[0, num_classes=3\)"):
        run(model, wrong)
    with pytest.raises(ValueError, match=r"\[0, num_classes=3\)"):
        model.evaluate(wrong["x"], wrong["y"], verbose=0)
    with pytest.raises(ValueError, match=r"\[0, num_classes=3\)"):
        run(model, {**data, "validation_data": (wrong["x"], wrong["y"])})
    with pytest.raises(ValueError, match=r"\[0, num_classes=3\)"):
        model.train_on_batch(wrong["x"], wrong["y"])
    with pytest.raises(ValueError, match=r"\[0, num_classes=3\)"):
        model.test_on_batch(wrong["x"], wrong["y"])
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 0


class Given(keras.utils.PyDataset):
    def __init__(self, *batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.batch


@pytest.mark.parametrize(
    ("y", "classes", "match"),
    [
        (zoo.labels()[:8], None, "Integer targets.*num_classes="),
        (zoo.labels()[:8], 2, r"\[0, num_classes=2\).*from 0 to 2"),
        (zoo.rows()[:5, :3], 3, r"same batch size.*8, 4.*5, 3"),
    ],
    ids=["integers", "labels", "rows"],
)
def test_data_sets_of_which_a_part_can_say_what_is_wrong(y, classes, match):
    """Before Keras has a word on shapes, and before a step makes NaN of it."""
    error, methods = ValueError, ["fit", "evaluate"]
    if BACKEND == "tensorflow" and classes is not None:
        # The step itself finds out, before it changes a weight.
        import tensorflow as tf

        error, match = tf.errors.InvalidArgumentError, match.split(".*")[0]
        methods = methods[: 1 + (classes == 2)]  # rows, where they are mixed
    mix = dlkit.layers.MixUp(num_classes=classes)
    for part, optimizer, metrics in (
        (mix, "sgd", []),
        (
            dlkit.layers.RandomChoice([mix]),
            dlkit.optimizers.SAM("sgd", every_steps=2),
            ["mse"],
        ),
    ):
        net = keras.Sequential([keras.Input((4,)), layers.Dense(classes or 3)])
        before = net.get_weights()
        model = dlkit.attach(net, part)
        model.compile(optimizer, "categorical_crossentropy", metrics=metrics)
        for name in methods:
            with pytest.raises(error, match=match):
                getattr(model, name)(Given(zoo.rows()[:8], y), verbose=0)
        assert_same(net.get_weights(), before)


@pytest.mark.parametrize(
    "method",
    mostly_slow_to_compile(
        ["SAM", "GSAM", "FriendlySAM", "LookSAM", "MomentumSAM"], ["SAM"]
    ),
)
def test_a_bad_batch_spoils_what_it_does_without_the_method(method):
    """An infinite loss of one head, NaN of another, and one that stays."""
    x, y = zoo.rows()[:4], zoo.rows(1)[:4]
    ill = {bad: np.array([[bad], [0], [0], [0]]) for bad in (np.inf, np.nan)}
    batches = [
        {"a": y, "b": y, "c": y},
        {"a": y, "b": ill[np.inf], "c": y},
        {"a": y, "b": y, "c": ill[np.nan]},
        {"a": y, "b": y, "c": y},
    ]
    wrap = getattr(dlkit.optimizers, method)
    sound = []
    for kind in ("inner", "wrapped"):
        inputs = keras.Input((4,))
        outputs = {name: layers.Dense(1, name=name)(inputs) for name in "abc"}
        model = dlkit.attach(keras.Model(inputs, outputs))
        optimizer = keras.optimizers.SGD(0.1, momentum=0.5)
        if kind == "wrapped":
            optimizer = wrap(optimizer, rho=0.1)
        model.compile(optimizer, dict.fromkeys("abc", "mse"))
        for batch in batches:
            model.train_on_batch(x, batch)
            sound.append([np.isfinite(w).all() for w in weights_of(model)])
    assert sound[:4] == sound[4:]
    assert all(sound[3][:2]) and not any(sound[3][2:])


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="needs Keras 3.15"
)
@pytest.mark.parametrize("chosen", [False, True])
def test_one_optimizer_of_several(chosen):
    """Found in a map when it is compiled; a function is asked in `fit`."""
    net, data, arguments = zoo.make("sequential")
    model = dlkit.attach(net)
    sam, sgd = dlkit.optimizers.SAM("sgd"), keras.optimizers.SGD()
    choice = keras.optimizers.OptimizerMap(sgd, {".*kernel": sam})
    if chosen:
        choice = lambda v: sam if v.name == "kernel" else sgd  # noqa: E731
    with pytest.raises(ValueError, match="SAM decides.*Wrap it around"):
        model.compile(keras.optimizers.MultiOptimizer(choice), **arguments)
        assert chosen
        run(model, data)
