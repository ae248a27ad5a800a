"""Models of every shape that users bring, with data for each.

An entry is a function without arguments that returns `(model, data,
compile_arguments)`, the same at every call; `data` are the arguments of
`fit`.
"""

import keras
import numpy as np
from keras import layers
from keras import ops

ROWS, CLASSES = 22, 3
CROSSENTROPY = "sparse_categorical_crossentropy"


def rows(width=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ROWS, width)).astype("float32")


def labels(seed=1):
    return np.random.default_rng(seed).integers(0, CLASSES, ROWS)


def classifier(loss=CROSSENTROPY):
    return {"loss": loss, "metrics": ["accuracy"]}


def sequential():
    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.3, seed=5),
            layers.Dense(CLASSES, "softmax"),
        ]
    )
    return net, {"x": rows(), "y": labels()}, classifier()


def convolutional():
    rng = np.random.default_rng(0)
    net = keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, "softmax"),
        ]
    )
    x = rng.normal(size=(ROWS, 5, 5, 1)).astype("float32")
    return net, {"x": x, "y": labels()}, classifier()


def dict_in_dict_out():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    h = layers.Dense(5, "tanh")(layers.Concatenate()([a, b]))
    outputs = {
        "kind": layers.Dense(CLASSES, "softmax", name="kind")(h),
        "size": layers.Dense(1, name="size")(h),
    }
    net = keras.Model({"a": a, "b": b}, outputs)
    data = {
        "x": {"a": rows(), "b": rows(2)},
        "y": {"kind": labels(), "size": rows(1)},
    }
    return (
        net,
        data,
        {
            "loss": {"kind": CROSSENTROPY, "size": "mse"},
            "loss_weights": {"kind": 1.0, "size": 0.5},
            "metrics": {"kind": ["accuracy"], "size": ["mae"]},
        },
    )


def list_in_list_out():
    a, b = keras.Input((4,)), keras.Input((2,))
    h = layers.Concatenate()([a, b])
    outputs = [
        layers.Dense(CLASSES, "softmax", name="kind")(h),
        layers.Dense(1, name="size")(h),
    ]
    net = keras.Model([a, b], outputs)
    data = {"x": [rows(), rows(2)], "y": [labels(), rows(1)]}
    return (
        net,
        data,
        {"loss": [CROSSENTROPY, "mse"], "metrics": [["accuracy"], ["mae"]]},
    )


def tuple_in_tuple_out():
    net, data, arguments = list_in_list_out()
    net = keras.Model(tuple(net.inputs), tuple(net.outputs))
    data = {name: tuple(value) for name, value in data.items()}
    return net, data, {name: tuple(value) for name, value in arguments.items()}


def nested_in_nested_out():
    """Dicts in dicts, and a tuple in one."""
    a, b = keras.Input((4,)), keras.Input((2,))
    h = layers.Concatenate()([a, b])
    kind = layers.Dense(CLASSES, "softmax", name="kind")(h)
    size, age = (layers.Dense(1, name=name)(h) for name in ("size", "age"))
    net = keras.Model(
        {"deep": {"a": a}, "pair": (b,)},
        {"deep": {"kind": kind}, "pair": (size, age)},
    )
    data = {
        "x": {"deep": {"a": rows()}, "pair": (rows(2),)},
        "y": {"deep": {"kind": labels()}, "pair": (rows(1), rows(1, seed=2))},
    }
    loss = {"deep": {"kind": CROSSENTROPY}, "pair": ("mse", "mae")}
    return net, data, {"loss": loss}


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """Built at its first call, with `add_loss`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(5, "relu")
        self.drop = layers.Dropout(0.3, seed=4)
        self.out = layers.Dense(CLASSES, "softmax")

    def call(self, x, training=False):
        h = self.drop(self.hidden(x), training=training)
        self.add_loss(0.1 * ops.mean(h**2))
        return self.out(h)


def subclassed():
    return Subclassed(), {"x": rows(), "y": labels()}, classifier()


@keras.saving.register_keras_serializable("tests")
class PartlyLazy(keras.Model):
    """A built backbone under a head that is built at the first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.backbone = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
        self.head = layers.Dense(CLASSES, "softmax")

    def call(self, x):
        return self.head(self.backbone(x))


def partly_lazy():
    return PartlyLazy(), {"x": rows(), "y": labels()}, classifier()


@keras.saving.register_keras_serializable("tests")
class WithoutTraining(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.out = layers.Dense(CLASSES, "softmax")

    def call(self, x):
        return self.out(x)


def without_training():
    return WithoutTraining(), {"x": rows(), "y": labels()}, classifier()


def nested():
    inner, _, _ = sequential()
    x = keras.Input((4,))
    net = keras.Model(x, layers.Dense(CLASSES, "softmax")(inner(x)))
    return net, {"x": rows(), "y": labels()}, classifier()


def masked():
    net = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            layers.SimpleRNN(5),
            layers.Dense(CLASSES, "softmax"),
        ]
    )
    tokens = np.random.default_rng(0).integers(0, 9, (ROWS, 6))
    tokens[:, 0] = 1
    return net, {"x": tokens, "y": labels()}, classifier()


def sample_weights():
    net, data, arguments = sequential()
    weights = np.linspace(0.5, 2, ROWS).astype("float32")
    return net, {**data, "sample_weight": weights}, arguments


def class_weights():
    net, data, arguments = sequential()
    return net, {**data, "class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}, arguments


@keras.saving.register_keras_serializable("tests")
class OwnLoss(keras.Model):
    """Its own `compute_loss`, with a metric it keeps, and `add_loss`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.out = layers.Dense(CLASSES, "softmax")
        self.penalty = keras.metrics.Mean(name="penalty")

    def call(self, x):
        outputs = self.out(x)
        self.add_loss(0.1 * ops.mean(outputs**2))
        return outputs

    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        penalty = ops.mean(ops.square(y_pred))
        self.penalty.update_state(penalty)
        return loss + 0.3 * penalty


def own_loss():
    return OwnLoss(), {"x": rows(), "y": labels()}, classifier()


@keras.saving.register_keras_serializable("tests")
class OwnMetrics(WithoutTraining):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**results, "largest": ops.max(y_pred)}


def own_metrics():
    return OwnMetrics(), {"x": rows(), "y": labels()}, classifier()


@keras.saving.register_keras_serializable("tests")
class OwnPrediction(WithoutTraining):
    def predict_step(self, *args):
        outputs = super().predict_step(*args)
        if isinstance(outputs, tuple):  # JAX: with the state
            return ops.argmax(outputs[0], -1), outputs[1]
        return ops.argmax(outputs, -1)


def own_prediction():
    return OwnPrediction(), {"x": rows(), "y": labels()}, classifier()


@keras.saving.register_keras_serializable("tests")
class HeldMetric(WithoutTraining):
    """A metric of its own, among the compiled ones, and results of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.largest = keras.metrics.Mean(name="largest")

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.largest.update_state(ops.max(y_pred, -1))
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self):
        results = super().get_metrics_result()
        return {name: 2.0 * value for name, value in results.items()}


def held_metric():
    return HeldMetric(), {"x": rows(), "y": labels()}, classifier()


@keras.saving.register_keras_serializable("tests")
class OwnCompile(WithoutTraining):
    """A `compile` with an argument of its own, saved as Keras asks for it."""

    def compile(self, strength=1.0, **kwargs):
        super().compile(**kwargs)
        self.strength = strength

    def get_compile_config(self):
        return {**super().get_compile_config(), "strength": self.strength}

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)

    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return self.strength * loss


def own_compile():
    arguments = {**classifier(), "strength": 2.0}
    return OwnCompile(), {"x": rows(), "y": labels()}, arguments


MODELS = {
    function.__name__: function
    for function in (
        sequential,
        convolutional,
        dict_in_dict_out,
        list_in_list_out,
        subclassed,
        partly_lazy,
        without_training,
        nested,
        masked,
        tuple_in_tuple_out,
        nested_in_nested_out,
        sample_weights,
        class_weights,
        own_loss,
        own_metrics,
        held_metric,
        own_compile,
        own_prediction,
    )
}


def make(name):
    """The same model, weights, data and compile arguments at every call."""
    keras.utils.set_random_seed(3)
    return MODELS[name]()
