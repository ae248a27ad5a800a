"""A canary for each private name of Keras that the package touches.

On a Keras where one has moved, the test here says which, before a user finds
out in another way.
"""

import inspect
import pathlib
import re
import threading

import keras
import numpy as np
import pytest
from keras import ops

from keras_dlkit import _keras
from tests import zoo

PACKAGE = pathlib.Path(_keras.__file__).parent


def compiled():
    model, _, arguments = zoo.make("sequential")
    model.compile("sgd", **arguments)
    return model


def test_compile_arguments_are_the_objects_given():
    model, _, _ = zoo.make("sequential")
    optimizer, loss = keras.optimizers.SGD(), keras.losses.MeanSquaredError()
    model.compile(optimizer, loss, loss_weights=[1.0], metrics=["mae"])
    arguments = _keras.compile_arguments(model)
    assert arguments["optimizer"] is optimizer
    assert arguments["loss"] is loss
    assert arguments["metrics"] == ["mae"]
    # All that `compile` takes, so that nothing is lost on the way.
    other, _, _ = zoo.make("sequential")
    other.compile(**arguments)
    assert other.optimizer is optimizer


def test_loss_tracker_is_the_mean_called_loss():
    tracker = _keras.loss_tracker(compiled())
    assert isinstance(tracker, keras.metrics.Mean) and tracker.name == "loss"


def test_shared_state_is_used_by_both_models():
    source, target = compiled(), compiled()
    _keras.share_compiled_state(source, target)
    x, y = zoo.rows(), zoo.labels()
    source.evaluate(x, y, verbose=0)
    assert target.get_metrics_result().keys() == {"loss", "accuracy"}
    for name, value in source.get_metrics_result().items():
        assert float(target.get_metrics_result()[name]) == float(value)


def test_adopted_variables_can_be_applied():
    class Bare(keras.optimizers.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign(ops.zeros_like(gradient))

    optimizer = Bare(0.1)
    variable = keras.Variable([1.0, 2.0])
    before = len(optimizer.variables)
    _keras.adopt_variables(optimizer, [variable])
    assert optimizer.built and len(optimizer.variables) == before
    # An unknown variable is told apart from the adopted one.
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([ops.ones(2)], [keras.Variable([1.0, 2.0])])


def test_all_layers_are_found_at_any_depth():
    dense, cell = keras.layers.Dense(2), keras.layers.GRUCell(2)
    wrapped = keras.layers.TimeDistributed(dense)
    inner = keras.Sequential([wrapped, keras.layers.RNN(cell)])
    model = keras.Sequential([inner, inner])
    found = _keras.all_layers(model)
    assert sum(layer is dense for layer in found) == 1
    assert {id(layer) for layer in (inner, wrapped, cell)} <= set(
        map(id, found)
    )
    assert not _keras.is_built_throughout(inner)
    inner.build((None, 3, 2))
    assert _keras.is_built_throughout(inner)


def test_an_initial_value_reaches_a_variable_that_has_none_yet():
    class Ones(keras.layers.Layer):
        def build(self, input_shape):
            self.w = self.add_weight(shape=(2,), initializer="zeros")
            _keras.set_initial_value(self.w, keras.initializers.Ones())

        def call(self, x):
            return x * self.w

    there, in_a_trace = Ones(), Ones()
    there(ops.ones((1, 2)))
    with keras.StatelessScope():
        in_a_trace.build((1, 2))
    for layer in (there, in_a_trace):
        assert ops.convert_to_numpy(layer.w).tolist() == [1.0, 1.0]


def test_a_replaced_optimizer_is_the_one_saved():
    model = compiled()
    _keras.replace_optimizer(model, keras.optimizers.Adam(0.5))
    assert model.get_compile_config()["optimizer"]["class_name"] == "Adam"
    assert isinstance(model.optimizer, keras.optimizers.Adam)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="needs Keras 3.15"
)
def test_slots_are_found_by_weight():
    a, b = keras.Variable([[1.0]]), keras.Variable([2.0, 3.0])
    adam, sgd = keras.optimizers.Adam(), keras.optimizers.SGD(momentum=0.5)
    both = keras.optimizers.MultiOptimizer(lambda v: adam if v is a else sgd)
    both.build([a, b])
    names = [name for name, _ in _keras.optimizer_slots(both, a)]
    assert names == ["_momentums", "_velocities"]
    (slot,) = _keras.optimizer_slots(both, b)
    assert slot[1].shape == (2,) and _keras.optimizer_of(both, b) is sgd
    assert not _keras.optimizer_slots(adam, b)


def test_swap_ema_weights_finds_the_averages():
    """`WrapperOptimizer` forwards a private name, for this callback."""
    inner = keras.optimizers.SGD(use_ema=True)
    inner.build([keras.Variable([1.0])])
    assert len(inner._model_variables_moving_average) == 1


def fit(model, *callbacks, **arguments):
    return model.fit(
        zoo.rows(),
        zoo.labels(),
        batch_size=11,
        verbose=0,
        callbacks=list(callbacks),
        **arguments,
    )


def test_the_epoch_with_which_fit_begins():
    class Skip(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            _keras.begin_at_epoch(self.model, 2)

        def on_epoch_begin(self, epoch, logs=None):
            _keras.begin_at_epoch(self.model, None)

    model = compiled()
    assert fit(model, Skip(), epochs=3).epoch == [2]
    # Taken back, so that the next one begins where it is told to.
    assert fit(model, epochs=1).epoch == [0]


def test_the_running_fit_is_found():
    found = []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            found.append(_keras.running_fit(self))

    look, other = Look(), keras.callbacks.Callback()
    fit(compiled(), other, look, epochs=3, initial_epoch=1, steps_per_epoch=2)
    ((callback_list, arguments),) = found
    assert arguments["initial_epoch"] == 1
    assert arguments["steps_per_epoch"] == 2
    assert arguments["x"].shape == zoo.rows().shape
    # The list is the one that Keras calls: both are in it, and can leave it.
    assert isinstance(callback_list, keras.callbacks.CallbackList)
    assert {look, other} <= set(callback_list.callbacks)
    # Not in a training of which Keras has no `fit`.
    hooks = keras.callbacks.CallbackList([look], model=compiled())
    hooks.on_train_begin()
    assert found[1] == (None, None)


def test_a_callback_taken_out_of_the_list_hears_no_more():
    heard = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            heard.append(batch)

    class TakeOut(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            callback_list, _ = _keras.running_fit(self)
            callback_list.callbacks = [self]

    fit(compiled(), Note(), TakeOut())
    assert heard == []
    fit(compiled(), Note())
    assert heard == [0, 1]


@pytest.mark.parametrize("between", [True, False])
def test_hooks_of_batches_are_called_between_the_steps(between):
    """Given alone, and not in a list, which Keras overlooks."""
    threads = []

    class Note(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            if between:
                _keras.call_between_steps(_keras.running_fit(self)[0])

        def on_train_batch_end(self, batch, logs=None):
            threads.append(threading.current_thread())

    compiled().fit(zoo.rows(), zoo.labels(), verbose=0, callbacks=Note())
    assert len(threads) == 1
    main = threads[0] is threading.main_thread()
    # Where Keras calls them in time without it, the helper can go.
    assert main == (between or keras.config.backend() == "tensorflow")


def test_held_metrics_are_those_of_the_model_itself():
    model, _, arguments = zoo.make("held_metric")
    model.compile("sgd", **arguments)
    fit(model)
    assert [metric.name for metric in _keras.held_metrics(model)] == ["largest"]
    assert not _keras.held_metrics(compiled())


def test_masks_are_where_layers_look_for_them():
    mask = ops.convert_to_tensor([[True, False]])
    x = keras.layers.Masking(0.0)(ops.convert_to_tensor([[[1.0], [0.0]]]))
    assert ops.convert_to_numpy(_keras.get_mask(x)).tolist() == [[True, False]]
    assert _keras.get_mask(ops.ones((1, 2, 1))) is None
    x = ops.convert_to_tensor([[[1.0], [5.0]]])
    _keras.set_mask(x, mask)
    mean = keras.layers.GlobalAveragePooling1D()(x)
    assert float(ops.convert_to_numpy(mean)[0, 0]) == 1.0


def test_masks_stay_with_tensors_that_are_traced():
    class Marked(keras.layers.Layer):
        def call(self, x):
            _keras.set_mask(x, x[..., 0] > 0)
            return ops.cast(_keras.get_mask(x), "float32")

    model = keras.Sequential([keras.Input((2, 1)), Marked()])
    x = np.array([[[1.0], [0.0]]])
    assert model.predict(x, verbose=0).tolist() == [[1.0, 0.0]]


def test_the_batch_size_of_tf_data():
    tf = pytest.importorskip("tensorflow")
    rows = tf.data.Dataset.range(10).map(lambda i: (tf.fill([3], i), i))
    batches = rows.shuffle(10).batch(4)
    assert _keras.is_tf_data(rows) and not _keras.is_tf_data([rows])
    for dataset, size in (
        (batches.prefetch(1).repeat(), 4),
        (rows.batch(4, drop_remainder=True).map(lambda x, y: {"x": x}), 4),
        (batches.map(lambda x, y: (x[1:], y)), None),
        (rows, None),
    ):
        assert _keras.tf_data_batch_size(dataset) == size


def test_each_helper_has_its_canary():
    """By name: a helper that no test here calls could break unseen."""
    here = pathlib.Path(__file__).read_text()
    helpers = [
        name
        for name, value in vars(_keras).items()
        if inspect.isfunction(value) and value.__module__ == _keras.__name__
    ]
    assert len(helpers) > 10
    assert not [name for name in helpers if f"_keras.{name}(" not in here]


def test_private_names_are_touched_in_one_place():
    allowed = {"_keras.py"}
    for path in PACKAGE.rglob("*.py"):
        if path.name in allowed:
            continue
        text = path.read_text()
        assert "keras.src" not in text, path
        for name in (
            "_compile_config",
            "_compile_loss",
            "_compile_metrics",
            "_flatten_layers",
            "_loss_tracker",
            "_jax_state",
            "_jax_state_synced",
            "_symbolic_build",
            "_maybe_symbolic_build",
            "_initializer",
            "_initial_epoch",
            "_async_train",
            "_keras_mask",
        ):
            assert not re.search(rf"\.{name}\b", text), (path, name)


def test_excluded_variables_join_those_excluded_before():
    weights = [keras.Variable(ops.ones(()), name=name) for name in "abc"]
    optimizer = keras.optimizers.SGD(1e-6, weight_decay=1e5)
    optimizer.exclude_from_weight_decay(weights[:1])
    _keras.exclude_from_weight_decay(optimizer, weights[1:2])
    optimizer.build(weights)
    optimizer.apply([ops.zeros(()) for _ in weights], weights)
    a, b, c = (float(ops.convert_to_numpy(w)) for w in weights)
    assert (a, b) == (1.0, 1.0) and c < 0.95


def test_exclusions_are_copied():
    weights = [keras.Variable(ops.ones(()), name=name) for name in "abc"]
    old, new = (keras.optimizers.SGD(1e-6, weight_decay=1e5) for _ in "12")
    old.exclude_from_weight_decay(weights[:1], ["b"])
    for optimizer in (old, new):
        optimizer.build(weights)
    _keras.copy_exclusions(old, new)
    new.apply([ops.zeros(()) for _ in weights], weights)
    a, b, c = (float(ops.convert_to_numpy(w)) for w in weights)
    assert (a, b) == (1.0, 1.0) and c < 0.95


def test_what_an_optimizer_applies_to():
    known, other = (keras.Variable(ops.ones(())) for _ in range(2))
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([known])
    assert _keras.applies_to(optimizer, [known])
    assert not _keras.applies_to(optimizer, [known, other])


def test_losses_are_those_of_compile():
    y, p = ops.convert_to_tensor([1.0, 0.0]), ops.convert_to_tensor([[0.5]] * 2)
    loss = _keras.as_loss(lambda y, p: ops.abs(y - p), y, p)
    assert isinstance(loss, keras.losses.Loss) and float(loss(y, p)) == 0.5
    assert _keras.loss_name("crossentropy") == "crossentropy"
    with pytest.raises(ValueError, match="no_loss"):
        _keras.loss_name("no_loss")


def test_the_scope_of_a_strategy():
    model = compiled()
    with _keras.strategy_scope(model):
        pass
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
        with strategy.scope():
            model = compiled()
        with _keras.strategy_scope(model):
            assert tf.distribute.get_strategy() is strategy


class Fails(keras.Sequential):
    def train_step(self, *args):
        raise ValueError("in a step")


@pytest.mark.parametrize("way", ["by the state", "by the fit"])
def test_an_error_in_a_step_takes_the_values_along(way):
    """On JAX alone. Where Keras gives them back, the helpers can go."""
    model = Fails([keras.Input((4,)), keras.layers.Dense(3)])
    there = [True, True]

    class Notes(keras.optimizers.SGD):
        def finalize_variable_values(self, var_list):
            found = _keras.give_state_of_fit_back() if "fit" in way else None
            there[:] = [found, model.weights[0]._value is not None]

    model.compile(Notes(), "mse", run_eagerly=True)
    model.make_train_function()
    function, given = model.train_function, []

    def noting(*args):
        given.append(args[0])
        return function(*args)

    model.train_function = noting
    before = model.get_weights()
    with pytest.raises(ValueError, match="in a step"):
        model.fit(zoo.rows(), zoo.rows()[:, :3], verbose=0)
    if keras.config.backend() == "jax":
        assert there == ([True, True] if "fit" in way else [None, False])
        if "state" in way:
            _keras.give_state_back(model, given[0])
    else:
        assert _keras.give_state_of_fit_back() is False
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="strategies are TensorFlow's"
)
def test_a_model_under_a_strategy_is_built_on_a_batch():
    """For `BuildsOnRows`; two replicas are in `conformance/devices.py`."""
    import tensorflow as tf

    seen = []

    class Notes(_keras.BuildsOnRows, keras.Sequential):
        def _symbolic_build(self, iterator=None, data_batch=None):
            seen.append(data_batch)
            super()._symbolic_build(iterator, data_batch)

    class Two:
        """Says that it has two replicas."""

        num_replicas_in_sync = 2

        def __getattr__(self, name):
            return getattr(strategy, name)

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = Notes([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", zoo.CROSSENTROPY)
    model._distribute_strategy = Two()
    model.evaluate(zoo.rows(), zoo.labels(), batch_size=4, verbose=0)
    ((x, y),) = seen
    assert x.shape == (4, 4) and y.dtype.is_integer
