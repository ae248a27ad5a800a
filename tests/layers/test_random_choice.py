"""RandomChoice: which part is applied, how often, and to what."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.layers import BatchPart
from keras_dlkit.layers import CutMix
from keras_dlkit.layers import CutOut
from keras_dlkit.layers import MixUp
from keras_dlkit.layers import RandomChoice

ROWS = 8
X = np.zeros((ROWS, 2), "float32")
Y = np.zeros(ROWS, "float32")


class Add(BatchPart):
    """Adds a number to the inputs, and says so in the targets."""

    def __init__(self, number, **kwargs):
        super().__init__(**kwargs)
        self.number = number

    def draw(self, batch_size, seed):
        return keras.random.uniform((batch_size,), seed=seed)

    def apply(self, x, y, sample_weight, draw):
        return x + self.number, y + self.number, sample_weight


def drawn(part, times):
    results = [part((X, Y)) for _ in range(times)]
    for x, y in results:
        assert (x == y[:, None]).all()  # one part made both
    return np.stack([y for _, y in results])


@pytest.mark.parametrize("probabilities", [None, [0.2, 0.0, 0.8]])
def test_frequencies_a_batch(probabilities):
    parts = [Add(1.0), Add(10.0), Add(100.0)]
    part = RandomChoice(parts, probabilities=probabilities, seed=3)
    times = 200
    y = drawn(part, times)
    assert (y == y[:, :1]).all()  # one for all rows
    for number, p in zip((1, 10, 100), probabilities or [1 / 3] * 3):
        share = (y[:, 0] == number).mean()
        assert abs(share - p) <= 4 * np.sqrt(p * (1 - p) / times)


def test_frequencies_a_sample():
    part = RandomChoice(
        [Add(1.0), Add(10.0)], probabilities=[0.25, 0.75], per_batch=False
    )
    y = drawn(part, 40)
    assert set(np.unique(y)) == {1, 10}
    assert (y != y[:, :1]).any()
    assert abs((y == 1).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / y.size)


def test_choices_nest():
    inner = RandomChoice([Add(1.0), Add(10.0)], seed=1)
    y = drawn(RandomChoice([inner, Add(100.0)], seed=2), 60)
    assert set(np.unique(y)) == {1, 10, 100}


@pytest.mark.parametrize("per_batch", [True, False])
def test_the_part_that_is_drawn_is_the_part_alone(per_batch):
    """With its own draw, and the targets encoded by all."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(ROWS, 4, 4, 1)).astype("float32")
    y, w = rng.integers(0, 3, ROWS), rng.uniform(1, 2, ROWS).astype("float32")
    parts = [MixUp(1.0, num_classes=3), CutOut(2), CutMix(num_classes=3)]
    part = RandomChoice(parts, per_batch=per_batch)
    batch = part.prepare(x, part.encode(y), w)
    _, draws = part.draw(ROWS, part.seed_generator)
    alone = [p.apply(*batch, draw) for p, draw in zip(parts, draws)]
    indices = np.arange(ROWS) % 3
    for index in range(3) if per_batch else [indices]:
        mixed = part.apply(*batch, (ops.convert_to_tensor(index), draws))
        for position, tensor in enumerate(mixed):
            expected = np.stack(
                [ops.convert_to_numpy(a[position]) for a in alone]
            )
            chosen = np.broadcast_to(index, (ROWS,))
            np.testing.assert_allclose(
                ops.convert_to_numpy(tensor),
                expected[chosen, np.arange(ROWS)],
                atol=1e-6,
            )


def test_one_form_whatever_is_drawn():
    """uint8 images, masks with weights: MixUp and CutMix change other forms."""
    x = np.random.default_rng(0).integers(0, 255, (ROWS, 4, 4, 3), "uint8")
    y = np.random.default_rng(1).integers(0, 3, (ROWS, 4, 4))
    w = np.ones(ROWS, "float32")
    part = RandomChoice([CutMix(), MixUp(num_classes=3)], seed=0)
    forms = set()
    for _ in range(6):
        batch = part((x, y, w))
        forms.add(tuple((t.dtype.name, t.shape) for t in batch))
    assert forms == {
        (
            ("float32", (ROWS, 4, 4, 3)),
            ("float32", (ROWS, 4, 4, 3)),
            ("float32", (ROWS, 4, 4)),
        )
    }
    assert part((x, y, w), training=False)[0].dtype == np.uint8


def test_a_part_that_changes_the_form_is_refused():
    class Half(Add):
        def apply(self, x, y, sample_weight, draw):
            return ops.cast(x, "float16"), y, sample_weight

    with pytest.raises(ValueError, match="Half.*float16.*prepare"):
        RandomChoice([Half(1.0)])((X, Y))


def test_epochs_reach_the_parts():
    parts = [MixUp(1.0, active_epochs=(1, 2)), MixUp(1.0, active_epochs=(1, 3))]
    part = RandomChoice([RandomChoice(parts, seed=0)], seed=0)
    assert part.follows_epochs
    x, y = np.arange(2 * ROWS, dtype="float32").reshape(ROWS, 2), Y
    for epoch, changes in [(0, False), (1, True), (5, False)]:
        part.set_epoch(epoch)
        assert (part((x, y))[0] != x).any() == changes


def test_it_encodes_if_any_part_does():
    part = RandomChoice([CutOut(2), MixUp(num_classes=3)])
    assert part.encodes() and not RandomChoice([CutOut(2)]).encodes()
    assert tuple(part.encode(np.array([0, 1, 2])).shape) == (3, 3)
    with pytest.raises(ValueError, match="from 0 to 3"):
        part((np.ones((2, 4, 4, 1)), np.array([0, 3])))
    net = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="sparse loss"):
        dlkit.attach(net, part).compile(
            "sgd", "sparse_categorical_crossentropy"
        )


def test_what_one_part_cannot_encode_another_may():
    y = np.array([[0, 1], [1, 1], [0, 0]])
    for parts in ([MixUp(), MixUp(multi_label=True)],) * 2:
        parts.reverse()
        assert RandomChoice(parts).encode(y).dtype != y.dtype
    each = [MixUp(num_classes=[3, None]), MixUp(num_classes=[None, 4])]
    labels = np.array([0, 1, 2])
    first, second = RandomChoice(each).encode([labels, labels])
    assert tuple(first.shape) == (3, 3) and tuple(second.shape) == (3, 4)
    with pytest.raises(ValueError, match="Integer targets cannot be blended"):
        RandomChoice([MixUp(), MixUp()])((np.ones((3, 2)), labels))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    x = keras.ops.cast(np.ones((4, 4, 4, 1)), dtype)
    y = np.arange(4)
    parts = [MixUp(1.0, num_classes=4), CutMix(num_classes=4)]
    for per_batch in (True, False):
        part = RandomChoice(parts, per_batch=per_batch)
        mixed, labels = part((x, keras.ops.convert_to_tensor(y)))
        assert keras.backend.standardize_dtype(mixed.dtype) == dtype
        assert keras.backend.standardize_dtype(labels.dtype) == "float32"


@pytest.mark.parametrize(
    ("layers", "arguments", "error", "match"),
    [
        ([], {}, TypeError, "one at least"),
        (MixUp(), {}, TypeError, "list of parts"),
        ([keras.layers.Dense(2)], {}, TypeError, "Dense"),
        ([MixUp()], {"probabilities": [0.5]}, ValueError, "sum 0.5"),
        ([MixUp()], {"probabilities": 1.0}, TypeError, "list of numbers"),
        ([MixUp()], {"probabilities": [0.5, 0.5]}, ValueError, "1 numbers"),
        ([MixUp()], {"probabilities": [-1]}, ValueError, "at least 0"),
        (
            [MixUp(num_classes=10), MixUp(num_classes=5)],
            {},
            ValueError,
            r"the same classes.*\[10, 5\]",
        ),
    ],
)
def test_bad_arguments(layers, arguments, error, match):
    with pytest.raises(error, match=match):
        RandomChoice(layers, **arguments)


def test_config_and_seeds():
    part = RandomChoice(
        [MixUp(1.0, num_classes=3, seed=1), CutOut(2, seed=2)],
        probabilities=[0.5, 0.5],
        per_batch=False,
        seed=3,
    )
    config = keras.saving.serialize_keras_object(part)
    copy = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(copy) == config
    x = np.random.default_rng(0).uniform(size=(ROWS, 4, 4, 1))
    data = x.astype("float32"), np.arange(ROWS) % 3
    for a, b in zip(part(data), copy(data)):
        np.testing.assert_array_equal(a, b)
