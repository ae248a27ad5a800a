"""`Resume`: what is saved, passed over, refused and noticed."""

import collections
import contextlib
import json
import os

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.callbacks import _plain_data
from keras_dlkit.callbacks._callback_memory import CallbackMemory
from tests.conformance import registry
from tests.conformance.test_contracts import assert_same
from tests.running import mostly_slow_to_compile
from tests.running import slow_to_compile

Resume = dlkit.callbacks.Resume
EPOCHS, STEPS = 3, 6


class Break(keras.callbacks.Callback):
    """Breaks training off before a batch, counted from 0."""

    def __init__(self, at=None):
        super().__init__()
        # No plain data: of this process alone.
        self.at, self.seen = at, collections.deque()

    def on_train_batch_begin(self, batch, logs=None):
        if len(self.seen) == self.at:
            raise KeyboardInterrupt
        self.seen.append(batch)


def network(units=6, optimizer=None):
    """With what Keras forgets: the seed state of a dropout."""
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(units, "tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.3, seed=5),
            layers.Dense(3, "softmax"),
        ]
    )
    net.compile(
        optimizer or keras.optimizers.Adam(0.01),
        "categorical_crossentropy",
        metrics=["accuracy"],
    )
    return net


def arrays(shuffle=False):
    x, y = registry.data()
    return {"x": x, "y": y, "batch_size": 4, "shuffle": shuffle}


class Batches(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.x, self.y = registry.data()

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return self.x[rows], self.y[rows]


class Reshuffled(Batches):
    """An order that hangs on all epochs before, from a source of its own."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(2)

    def on_epoch_end(self):
        order = self.rng.permutation(len(self.x))
        self.x, self.y = self.x[order], self.y[order]


def generator():
    """A stream: its epochs are not alike."""
    x, y = registry.data()
    start = 0
    while True:
        yield x[start : start + 3], y[start : start + 3]
        start = (start + 2) % 19


def tf_data():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(registry.data())
    return {"x": data.shuffle(22, seed=4).batch(4), "shuffle": False}


def loader(**arguments):
    """Of PyTorch, whose samplers draw from its state unless told otherwise."""
    import torch.utils.data

    tensors = [torch.from_numpy(a) for a in registry.data()]
    data = torch.utils.data.TensorDataset(*tensors)
    loader = torch.utils.data.DataLoader(data, batch_size=4, **arguments)
    return {"x": loader, "shuffle": False}


def generator_of_torch():
    import torch

    return torch.Generator().manual_seed(3)


class OwnSampler:
    """An order that hangs on all epochs before, as that of `Reshuffled`."""

    def __init__(self):
        self.rng = np.random.default_rng(2)

    def __len__(self):
        return 22

    def __iter__(self):
        return iter(self.rng.permutation(22).tolist())


DATA = {
    "arrays": arrays,
    "shuffled_arrays": lambda: arrays(shuffle=True),
    "arrays_cut_by_steps": lambda: {**arrays(), "steps_per_epoch": 3},
    "py_dataset": lambda: {"x": Batches(), "shuffle": True},
    "reshuffled_py_dataset": lambda: {"x": Reshuffled(), "shuffle": False},
    "tf_data": tf_data,
    "generator": lambda: {
        "x": generator(),
        "steps_per_epoch": STEPS,
        "shuffle": False,
    },
}
if keras.config.backend() == "torch":
    DATA["loader"] = lambda: loader(shuffle=True)
    DATA["loader_of_a_generator"] = lambda: loader(
        shuffle=True, generator=generator_of_torch()
    )
    DATA["loader_of_a_sampler"] = lambda: loader(sampler=OwnSampler())


@pytest.mark.skipif("loader" not in DATA, reason="loaders are PyTorch's")
def test_workers_that_live_on_draw_all_epochs_again():
    """Their random states go from one epoch to the next."""
    from keras_dlkit.callbacks import _replay

    for lives_on in (False, True):
        data = loader(num_workers=1, persistent_workers=lives_on)
        arguments = {**data, "steps_per_epoch": None}
        assert _replay.needs_all(arguments) == lives_on


def train(folder, data, at=None, callbacks=(), epochs=EPOCHS, net=None, **args):
    """One process would do this: the same seed, a fresh model."""
    keras.utils.set_random_seed(7)
    net = net or network()
    watch = Break(at)
    history = keras.callbacks.History()
    resume = Resume(folder, **{"save_every_steps": 2, **args})
    try:
        net.fit(
            **data,
            epochs=epochs,
            verbose=0,
            validation_data=registry.data(),
            callbacks=[watch, *callbacks, resume, history],
        )
    except KeyboardInterrupt:
        assert at is not None
    return net, history.history, list(watch.seen)


def assert_goes_on(tmp_path, make_data, at, make_callbacks=list, seen=None):
    """Broken off before the batch `at`, and then as if it had not been."""
    whole, history, _ = train(
        tmp_path / "whole", make_data(), callbacks=make_callbacks()
    )
    train(tmp_path / "a", make_data(), at, make_callbacks())
    resumed, history_again, batches = train(
        tmp_path / "a", make_data(), callbacks=make_callbacks()
    )
    assert_same(registry.state(whole), registry.state(resumed))
    assert history_again == history
    assert whole.optimizer.iterations == resumed.optimizer.iterations
    if seen is not None:
        assert batches == seen
    return resumed


@pytest.mark.parametrize(
    "kind", mostly_slow_to_compile(DATA, ["shuffled_arrays"])
)
def test_broken_in_mid_epoch_it_goes_on(kind, tmp_path):
    # Of 6 batches an epoch: 1 of the second epoch is lost, 2 are passed over.
    at, seen = 9, [*range(2, 6), *range(6)]
    if kind == "arrays_cut_by_steps":  # the second epoch begins with the 4th
        at, seen = 5, [2, 0, 1, 2]
    assert_goes_on(tmp_path, DATA[kind], at, seen=seen)


@slow_to_compile
def test_keras_replays_the_epoch_and_this_does_not(tmp_path):
    """The number that the documentation gives."""

    def fit(make, at=None):
        keras.utils.set_random_seed(7)
        net, (x, y) = network(), registry.data()
        data = {"x": x[:16], "y": y[:16], "batch_size": 2, "shuffle": False}
        try:
            net.fit(**data, epochs=2, verbose=0, callbacks=[Break(at), make()])
        except KeyboardInterrupt:
            assert at is not None
        return int(ops.convert_to_numpy(net.optimizer.iterations))

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "b", save_freq=2)

    def resume():
        return Resume(tmp_path / "a", save_every_steps=2)

    # Two epochs of 8 batches, broken off after 2 batches of the second.
    for make, updates in ((backup, 18), (resume, 16)):
        fit(make, at=10)
        assert fit(make) == updates


@slow_to_compile
def test_broken_before_the_first_save_and_between_epochs(tmp_path):
    assert_goes_on(tmp_path / "0", arrays, 1, seen=[*range(6)] * 3)
    assert_goes_on(tmp_path / "1", arrays, 6, seen=[*range(6)] * 2)


@slow_to_compile
def test_replay_of_one_epoch_or_all_is_the_same_for_a_fixed_order(tmp_path):
    states = []
    for replay in ("epoch", "all"):
        train(tmp_path / replay, arrays(), 9)
        net, _, _ = train(tmp_path / replay, arrays(), replay=replay)
        states.append(registry.state(net))
    assert_same(*states)


def ticket():
    return [
        dlkit.callbacks.LotteryTicket(
            3,
            1,
            rewind=3,
            callbacks=[keras.callbacks.ReduceLROnPlateau("loss", patience=0)],
            seed=3,
        )
    ]


def pruning():
    schedule = dlkit.schedules.PolynomialSparsity(
        0.7, begin_step=1, end_step=15
    )
    return [dlkit.callbacks.MagnitudePruning(schedule, every_steps=3)]


def plateau():
    return [
        keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=9.0),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.9 * rate),
    ]


def early():
    # The first epoch is the best; the second is the last.
    return [
        keras.callbacks.EarlyStopping(
            "loss",
            mode="max",
            patience=1,
            restore_best_weights=True,
        )
    ]


@pytest.mark.parametrize(
    "make",
    mostly_slow_to_compile([ticket, pruning, plateau, early], [pruning]),
)
# In the first epoch, between it and the second, and in that one.
@pytest.mark.parametrize("at", mostly_slow_to_compile([3, 6, 9], [9]))
def test_other_callbacks_go_on(make, at, tmp_path):
    assert_goes_on(tmp_path, arrays, at, make)


@slow_to_compile
def test_the_best_of_a_model_checkpoint_is_kept(tmp_path):
    best = []

    def checkpoint():
        callback = keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", "loss", mode="max", save_best_only=True
        )
        best.append(callback)
        return [callback]

    assert_goes_on(tmp_path, arrays, 9, checkpoint)
    assert best[0].best == best[2].best


@slow_to_compile
def test_an_attached_model_with_steps_per_execution(tmp_path):
    case = registry.BY_NAME["sam_every_2"]
    if keras.config.backend() == "torch":
        return  # Keras has none there

    def model():
        keras.utils.set_random_seed(7)
        return registry.attached(case, steps_per_execution=4)

    whole, history, _ = train(tmp_path / "whole", arrays(), net=model())
    train(tmp_path / "a", arrays(), 3, net=model())
    resumed, again, seen = train(tmp_path / "a", arrays(), net=model())
    assert seen == [4, 0, 4]
    assert_same(registry.state(whole), registry.state(resumed))
    assert history == again


class Counter(keras.callbacks.Callback):
    """What a user may write: plain data, and an object that is none."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs, self.means = 0, [], {}
        self.lock = object()

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        self.means[(self.epochs[-1], batch)] = np.float32(logs["loss"])


@slow_to_compile
def test_a_callback_of_the_user_hears_of_each_batch_once(tmp_path):
    whole, broken, resumed = Counter(), Counter(), Counter()
    train(tmp_path / "whole", arrays(), callbacks=[whole])
    train(tmp_path / "a", arrays(), 9, [broken])
    train(tmp_path / "a", arrays(), callbacks=[resumed])
    assert resumed.batches == whole.batches == 18
    assert resumed.epochs == whole.epochs == [0, 1, 2]
    # The running means of the epoch, too.
    assert resumed.means == whole.means


class OddLogs(keras.callbacks.Callback):
    """Puts into the logs what no number is."""

    def on_train_batch_end(self, batch, logs=None):
        logs["phase"], logs["lock"] = f"batch {batch}", object()

    def on_epoch_end(self, epoch, logs=None):
        logs["phase"] = f"epoch {epoch}"


@slow_to_compile
def test_logs_that_are_no_scalars(tmp_path):
    """A metric of a vector, a string; what is not plain is not kept."""

    def net():
        keras.utils.set_random_seed(7)
        net = network()
        metrics = [keras.metrics.F1Score()]
        net.compile("adam", "categorical_crossentropy", metrics=metrics)
        return net

    whole, history, _ = train(
        tmp_path / "whole", arrays(), callbacks=[OddLogs()], net=net()
    )
    train(tmp_path / "a", arrays(), 9, [OddLogs()], net=net())
    resumed, again, seen = train(
        tmp_path / "a", arrays(), callbacks=[OddLogs()], net=net()
    )
    assert seen == [2, 3, 4, 5, *range(6)]
    assert_same(registry.state(whole), registry.state(resumed))
    assert history.keys() == again.keys()
    for name, values in history.items():
        assert len(values) == EPOCHS
        for a, b in zip(values, again[name]):
            assert type(a) is type(b)
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert np.shape(again["f1_score"][0]) == (3,)


class OwnState(keras.callbacks.Callback):
    state = None

    def on_train_begin(self, logs=None):
        self.state = {"count": np.zeros(())}

    def on_train_batch_end(self, batch, logs=None):
        self.state["count"] += 1

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


@slow_to_compile
def test_a_callback_with_a_state_of_its_own(tmp_path):
    train(tmp_path, arrays(), 9, [OwnState()])
    callback = OwnState()
    train(tmp_path, arrays(), callbacks=[callback])
    assert callback.state["count"] == 18


@slow_to_compile
def test_settings_of_now_are_not_those_of_the_save(tmp_path):
    """Of a callback, what it learned goes on, not what it is given anew."""
    train(tmp_path, arrays(), 9, [keras.callbacks.EarlyStopping(patience=9)])
    callback = keras.callbacks.EarlyStopping(patience=12)
    train(tmp_path, arrays(), callbacks=[callback])
    assert callback.patience == 12 and callback.best is not None


@slow_to_compile
def test_new_callbacks_are_noticed(tmp_path):
    train(tmp_path, arrays(), 9)
    with pytest.warns(UserWarning, match="Counter.0"):
        train(tmp_path, arrays(), callbacks=[Counter()])


@slow_to_compile
def test_given_alone_and_not_in_a_list(tmp_path):
    keras.utils.set_random_seed(7)
    expected = train(tmp_path / "a", arrays())[0]
    keras.utils.set_random_seed(7)
    net = network()
    resume = Resume(tmp_path / "b", save_every_steps=1)
    validation = registry.data()
    net.fit(
        **arrays(),
        epochs=EPOCHS,
        verbose=0,
        callbacks=resume,
        validation_data=validation,
    )
    assert_same(registry.state(expected), registry.state(net))


# The end.


@slow_to_compile
def test_saves_are_deleted_at_the_end(tmp_path):
    train(tmp_path / "a", arrays())
    assert not (tmp_path / "a").exists()


@slow_to_compile
def test_a_finished_run_is_not_trained_again_and_can_be_longer(tmp_path):
    keep = {"delete_checkpoint": False}
    done, history, _ = train(tmp_path / "a", arrays(), **keep)
    again, history_again, seen = train(tmp_path / "a", arrays(), **keep)
    assert seen == [] and history == history_again
    assert_same(registry.state(done), registry.state(again))
    longer, _, seen = train(tmp_path / "a", arrays(), epochs=4, **keep)
    assert seen == [*range(6)]
    whole, _, _ = train(tmp_path / "b", arrays(), epochs=4)
    assert_same(registry.state(whole), registry.state(longer))


@slow_to_compile
def test_a_second_fit_of_the_model_begins_at_its_first_epoch(tmp_path):
    train(tmp_path / "a", arrays(), 9)
    net, _, _ = train(tmp_path / "a", arrays())
    assert net.fit(**arrays(), epochs=1, verbose=0).epoch == [0]


@slow_to_compile
def test_averages_are_those_of_the_end(tmp_path):
    """Killed after the last epoch, before the averages become the weights."""

    class BreakAtEnd(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise KeyboardInterrupt

    def net():
        keras.utils.set_random_seed(7)
        return network(optimizer=keras.optimizers.SGD(0.1, use_ema=True))

    whole, _, _ = train(tmp_path / "b", arrays(), net=net())
    train(tmp_path / "a", arrays(), -1, [BreakAtEnd()], net=net())
    with pytest.warns(UserWarning, match="BreakAtEnd"):
        again, _, seen = train(tmp_path / "a", arrays(), net=net())
    assert seen == []
    assert_same(registry.state(whole), registry.state(again))


# Damage.


def saves(folder):
    return sorted(folder.glob("save_*.npz"))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@slow_to_compile
@pytest.mark.parametrize(
    "damage", mostly_slow_to_compile([truncate, empty, flip], [truncate])
)
def test_the_save_before_a_damaged_one_is_used_and_said(damage, tmp_path):
    whole, history, _ = train(tmp_path / "whole", arrays())
    train(tmp_path / "a", arrays(), 9)
    assert len(saves(tmp_path / "a")) == 2
    damage(saves(tmp_path / "a")[-1])
    with pytest.warns(UserWarning, match=r"save_\d+.npz' is damaged"):
        resumed, again, seen = train(tmp_path / "a", arrays())
    assert seen[:2] == [0, 1]  # that of the end of the first epoch
    assert_same(registry.state(whole), registry.state(resumed))
    assert history == again


def test_a_folder_of_damaged_saves_is_refused(tmp_path):
    train(tmp_path, arrays(), 9)
    for path in saves(tmp_path):
        flip(path)
    net = network()
    before = registry.state(net)
    with pytest.warns(UserWarning, match="damaged"):
        with pytest.raises(ValueError, match="a save that is whole"):
            train(tmp_path, arrays(), net=net)
    assert_same(before, registry.state(net)[: len(before)])


@slow_to_compile
def test_a_save_holds_no_pickles_and_survives_one_half_written(tmp_path):
    train(tmp_path, arrays(), 9)
    (tmp_path / "save_000000009.tmp").write_bytes(b"half")
    with np.load(saves(tmp_path)[-1], allow_pickle=False) as file:
        meta = json.loads(file["meta"].tobytes())
        assert all(file[name].dtype != object for name in file.files)
    assert (meta["epoch"], meta["batch"]) == (1, 2)
    train(tmp_path, arrays())
    assert not tmp_path.exists()


def test_arrays_are_copied_within_the_list_that_holds_them():
    """Which the user may hold, too."""
    callback, weights = keras.callbacks.Callback(), np.zeros(2)
    callback.seen = seen = [weights]
    CallbackMemory([callback]).own_arrays()
    assert callback.seen is seen and seen[0] is not weights


def test_plain_data_come_back_as_they_were():
    value = {
        "a": (1, [2.5, None], "b"),
        3: np.arange(3, dtype="uint8"),
        (1, 2): keras.ops.less,
        "nan": float("inf"),
    }
    stored = {}
    node = json.loads(json.dumps(_plain_data.encode(value, stored, "p")))
    again = _plain_data.decode(node, stored)
    assert again.keys() == value.keys()
    np.testing.assert_array_equal(again.pop(3), value.pop(3))
    assert again == value
    with pytest.raises(_plain_data.NotPlain, match="no plain data"):
        _plain_data.encode([object()], {}, "p")
    with pytest.raises(_plain_data.NotPlain, match="no plain data"):
        _plain_data.encode([keras.Variable(1.0)], {}, "p")
    with pytest.raises(_plain_data.NotPlain, match="bfloat16"):
        _plain_data.encode(ops.ones(2, "bfloat16"), {}, "p")


def test_plain_tensors_come_back_as_tensors():
    stored = {}
    node = _plain_data.encode_items(
        {"a": ops.arange(3.0), "b": object()}, stored, "p"
    )
    assert node.keys() == {"a"}
    again = _plain_data.decode(json.loads(json.dumps(node["a"])), stored)
    assert ops.is_tensor(again)
    np.testing.assert_array_equal(ops.convert_to_numpy(again), np.arange(3.0))


# What is refused.


@slow_to_compile
def test_another_model_optimizer_or_number_of_steps_is_refused(tmp_path):
    train(tmp_path, arrays(), 9)
    with pytest.raises(
        ValueError, match="variables of the model: .*4, 6.*4, 7"
    ):
        train(tmp_path, arrays(), net=network(7))
    with pytest.raises(ValueError, match="optimizer: Adam. Received: SGD"):
        train(tmp_path, arrays(), net=network(optimizer="sgd"))
    with pytest.raises(ValueError, match="steps per epoch: 6. Received: 11"):
        train(tmp_path, {**arrays(), "batch_size": 2})
    frozen = network()
    frozen.layers[0].trainable = False
    with pytest.raises(ValueError, match="trainable.*fixed"):
        train(tmp_path, arrays(), net=frozen)


@slow_to_compile
def test_other_metrics_are_refused(tmp_path):
    train(tmp_path, arrays(), 9)
    net = network()
    net.compile("adam", "categorical_crossentropy", metrics=["mae", "mse"])
    with pytest.raises(ValueError, match="metrics it began with"):
        train(tmp_path, arrays(), net=net)


def test_data_that_end_too_early_are_refused(tmp_path):
    def short():
        x, y = registry.data()
        for start in range(0, 12, 4):
            yield x[start : start + 4], y[start : start + 4]

    data = {"steps_per_epoch": STEPS, "shuffle": False}
    train(tmp_path, {"x": generator(), **data}, 5)
    with pytest.warns(UserWarning, match="ran out of data"):
        with pytest.raises(ValueError, match="must hold the 4 batches"):
            train(tmp_path, {"x": short(), **data})


def test_a_model_that_is_not_built_is_refused_or_built_by_fit(tmp_path):
    net = keras.Sequential([keras.layers.Dense(3)])
    net.compile("sgd", "mse")
    # On TensorFlow the first step builds it; on the others `fit`, before.
    refused = pytest.raises(ValueError, match="which is not built")
    if keras.config.backend() != "tensorflow":
        refused = contextlib.nullcontext()
    with refused:
        net.fit(**arrays(), verbose=0, callbacks=[Resume(tmp_path)])
        assert net.built


def test_what_cannot_go_on_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="BackupAndRestore"):
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        train(tmp_path, arrays(), callbacks=[backup])
    with pytest.raises(ValueError, match="a `Resume` beside it"):
        train(tmp_path, arrays(), callbacks=[Resume(tmp_path / "b")])
    with pytest.raises(ValueError, match="no `fit` of `keras.Model`"):
        hooks = keras.callbacks.CallbackList(
            [Resume(tmp_path)], model=network()
        )
        hooks.on_train_begin()


def test_arguments():
    with pytest.raises(ValueError, match="save_every_steps=0"):
        Resume("a", save_every_steps=0)
    with pytest.raises(TypeError, match="save_every_steps=1.5"):
        Resume("a", save_every_steps=1.5)
    with pytest.raises(ValueError, match="replay='some'"):
        Resume("a", replay="some")
