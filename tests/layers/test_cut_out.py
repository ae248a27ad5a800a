"""CutOut against NumPy, given the draw; and all that its arguments promise."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.layers import CutOut

RNG = np.random.default_rng(0)
ROWS = 5
PLACES = RNG.uniform(size=(ROWS, 6)).astype("float32")
CUT = np.array([True, True, False, True, True])


def images(sizes=(6, 9), dtype="float32", rows=ROWS):
    return RNG.uniform(1, 200, (rows, *sizes, 3)).astype(dtype)


def by_hand(x, lengths, count, fill):
    out, rank = x.copy(), len(lengths)
    for row in np.flatnonzero(CUT):
        for square in range(count):
            window = []
            places = PLACES[row, 3 * square : 3 * square + rank]
            for size, place, length in zip(x.shape[1:], places, lengths):
                first = int(place * size) - length // 2
                window.append(slice(max(first, 0), min(first + length, size)))
            out[row][tuple(window)] = fill
    return out


def apply(part, x):
    return ops.convert_to_numpy(part.apply(x, None, None, (PLACES, CUT))[0])


@pytest.mark.parametrize(
    ("sizes", "size", "lengths"),
    [
        ((6, 9), 3, (3, 3)),
        ((6, 9), 0.5, (3, 4)),
        ((7, 7), 4, (4, 4)),
        ((1, 8), 0.25, (1, 2)),  # never nothing
        ((9,), 0.34, (3,)),
        ((4, 5, 6), 2, (2, 2, 2)),
        ((3, 3), 9, (9, 9)),
    ],
)
def test_squares(sizes, size, lengths):
    x = images(sizes)
    np.testing.assert_array_equal(
        apply(CutOut(size), x), by_hand(x, lengths, 1, 0)
    )


def test_count_and_fill():
    x, fill = images(), [7.0, 8.0, 9.5]
    np.testing.assert_array_equal(
        apply(CutOut(3, count=2, fill=fill), x), by_hand(x, (3, 3), 2, fill)
    )
    first = CutOut(3, fill=fill, data_format="channels_first")
    np.testing.assert_array_equal(
        np.moveaxis(apply(first, np.moveaxis(x, -1, 1)), 1, -1),
        by_hand(x, (3, 3), 1, fill),
    )


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16"])
def test_dtypes_are_kept(dtype):
    x = images(dtype=dtype)
    cut = apply(CutOut(3, fill=5), x)
    assert cut.dtype == dtype
    np.testing.assert_array_equal(cut, by_hand(x, (3, 3), 1, 5))


def test_several_inputs_are_cut_at_the_same_place():
    x = {"a": images((6, 9)), "b": images((12, 18)), "row": np.ones((ROWS, 2))}
    part = CutOut(0.5, inputs=["a", "b"])
    cut, _, _ = part.apply(x, None, None, (PLACES, CUT))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(cut["b"]), by_hand(x["b"], (6, 9), 1, 0)
    )
    assert (ops.convert_to_numpy(cut["row"]) == x["row"]).all()


def test_targets_and_weights_are_untouched():
    data = images(), np.arange(ROWS), np.ones(ROWS)
    part = CutOut(seed=0)
    x, y, w = part(data)
    assert (x != data[0]).any()
    assert (y == data[1]).all() and y.dtype.kind == "i"
    assert (w == data[2]).all()
    assert (part(data[:2], training=False)[0] == data[0]).all()
    # Integers stay integers: a sparse loss is fine.
    net = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(5)]
    )
    model = dlkit.attach(net, CutOut(2))
    model.compile("sgd", "sparse_categorical_crossentropy")


def test_area_and_probability():
    """With probability 1 every image is cut, by its square at most."""
    x = np.ones((400, 16, 16, 1), "float32")
    y = np.zeros(400)
    area = (CutOut(8, seed=1)((x, y))[0] == 0).sum(axis=(1, 2, 3))
    assert area.min() >= 16 and area.max() == 64
    # Along each axis: the mean of what is left of 8 pixels about 16 places.
    left = [min(p + 4, 16) - max(p - 4, 0) for p in range(16)]
    error = area.std() / np.sqrt(len(area))
    assert abs(area.mean() - np.mean(left) ** 2) < 4 * error
    half = CutOut(8, probability=0.5, seed=1)((x, y))[0]
    assert 0.4 < (half == 0).any(axis=(1, 2, 3)).mean() < 0.6


def test_null_settings_and_epochs():
    data = images(), np.zeros(ROWS)
    assert (CutOut(probability=0.0)(data)[0] == data[0]).all()
    part = CutOut(active_epochs=(1, 2), seed=0)
    for epoch, changes in [(0, False), (1, True), (2, False)]:
        part.set_epoch(epoch)
        assert (part(data)[0] != data[0]).any() == changes


def test_inputs_it_is_not_for():
    y = np.zeros(ROWS)
    with pytest.raises(ValueError, match="rank 3 to 5"):
        CutOut()((np.ones((ROWS, 4)), y))
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="rank 3 to 5"):
        dlkit.attach(net, CutOut())
    for fill, dtype, match in [
        ([1, 2], "float32", "one a channel.*3"),
        (0.5, "uint8", "hold.*uint8"),
        (256, "uint8", "hold.*fill=256"),
        (-200, "int8", "hold.*fill=-200"),
    ]:
        with pytest.raises(ValueError, match=match):
            CutOut(fill=fill)((images(dtype=dtype), y))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 0.0}, "above 0.*probability=0"),
        ({"size": 1.5}, "size=1.5"),
        ({"size": 0}, "size=0"),
        ({"count": 0}, "count=0"),
        ({"probability": -1}, "probability=-1"),
        ({"fill": float("nan")}, "fill=nan"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        CutOut(**arguments)


def test_config():
    part = CutOut(8, count=2, fill=[1, 2, 3], inputs="a", seed=3)
    config = keras.saving.serialize_keras_object(part)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == part.get_config()
    assert isinstance(copy.size, int)
