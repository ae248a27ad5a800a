"""CutMix against NumPy, given the draw; and all that its arguments promise."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.layers import CutMix
from tests.running import slow_to_compile

RNG = np.random.default_rng(0)
ROWS, SIZES = 6, (5, 8)
PERMUTATION = np.array([2, 0, 3, 1, 5, 4])
LAM = np.array([0.3, 1.0, 0.55, 0.0, 0.8, 0.05], "float32")
PLACES = RNG.uniform(size=(ROWS, 3)).astype("float32")
DRAW = LAM, PERMUTATION, PLACES


def images(sizes=SIZES, dtype="float32", rows=ROWS):
    return (255 * RNG.uniform(size=(rows, *sizes, 3))).astype(dtype)


def windows(sizes=SIZES, lam=LAM):
    """The box of each row, as slices."""
    result = []
    for share, place in zip(lam.astype("float64"), PLACES):
        side = (1 - share) ** (1 / len(sizes))
        window = []
        for size, where in zip(sizes, place):
            length = int(np.rint(size * side))
            first = int(where * size) - length // 2
            window.append(slice(max(first, 0), min(first + length, size)))
        result.append(tuple(window))
    return result


def pasted(t, sizes=SIZES):
    out = t.copy()
    for row, window in enumerate(windows(sizes)):
        out[row][window] = t[PERMUTATION[row]][window]
    return out


def shares(sizes=SIZES):
    """The share of its own pixels in each row, counted."""
    own = []
    for window in windows(sizes):
        mask = np.ones(sizes)
        mask[window] = 0
        own.append(mask.mean())
    return np.array(own)


def blend(t, sizes=SIZES):
    share = shares(sizes).reshape(-1, *[1] * (t.ndim - 1))
    return share * t + (1 - share) * t[PERMUTATION]


def apply(part, x, y, sample_weight=None, draw=DRAW):
    batch = part.prepare(x, part.encode(y), sample_weight)
    return [to_numpy(t) for t in part.apply(*batch, draw)]


def to_numpy(structure):
    return keras.tree.map_structure(
        lambda t: None if t is None else ops.convert_to_numpy(t), structure
    )


def check(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    "sizes", [(5, 8), (1, 7), (8, 8), (9,), (3, 4, 5), (1,)]
)
def test_label_share_is_pixel_share(sizes):
    x, labels = images(sizes), np.array([0, 2, 1, 2, 0, 1])
    mixed, y, w = apply(CutMix(num_classes=3), x, labels)
    np.testing.assert_array_equal(mixed, pasted(x, sizes))
    check(y, blend(np.eye(3)[labels], sizes))
    assert w is None


def test_the_drawn_share_on_request():
    labels = np.array([0, 2, 1, 2, 0, 1])
    part = CutMix(num_classes=3, exact_area=False)
    mixed, y, _ = apply(part, x := images(), labels)
    np.testing.assert_array_equal(mixed, pasted(x))
    own, other = np.eye(3)[labels], np.eye(3)[labels][PERMUTATION]
    check(y, LAM[:, None] * own + (1 - LAM[:, None]) * other)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "bfloat16"])
def test_inputs_keep_their_dtype(dtype):
    x = ops.cast(images(dtype="uint8"), dtype)
    mixed, y = CutMix(num_classes=3, seed=0)((x, np.arange(ROWS) % 3))
    assert keras.backend.standardize_dtype(mixed.dtype) == dtype
    assert keras.backend.standardize_dtype(y.dtype) == "float32"


def test_a_box_a_batch():
    part = CutMix(per_sample=False, seed=3)
    draw = part.draw(ROWS, part.seed_generator)
    assert tuple(draw[0].shape) == (1,) and tuple(draw[2].shape) == (1, 3)
    x = np.arange(ROWS, dtype="float32")[:, None, None, None]
    x = np.broadcast_to(x, (ROWS, *SIZES, 1)).copy()
    y = np.arange(ROWS, dtype="float32")
    mixed, target, _ = apply(part, x, y, draw=draw)
    away = to_numpy(draw[1]) != np.arange(ROWS)
    masks = (mixed == x)[away]
    assert (masks == masks[0]).all()
    # Means of constant images are blended by the very share of the labels.
    check(mixed.mean(axis=(1, 2, 3)), target)


def test_several_images_and_what_is_none():
    x = {
        "rgb": images(),
        "depth": RNG.normal(size=(ROWS, *SIZES, 1)).astype("float32"),
        "row": RNG.normal(size=(ROWS, 4)).astype("float32"),
    }
    y = RNG.normal(size=(ROWS, 1)).astype("float32")
    mixed, target, _ = apply(CutMix(inputs=["rgb", "depth"]), x, y)
    for name in ("rgb", "depth"):
        np.testing.assert_array_equal(mixed[name], pasted(x[name]))
    np.testing.assert_array_equal(mixed["row"], x["row"])
    check(target, blend(y))
    with pytest.raises(ValueError, match=r"'row' of shape \(6, 4\).*inputs="):
        apply(CutMix(), x, y)
    x["small"] = images((4, 8))
    with pytest.raises(ValueError, match=r"same spatial sizes.*\(4, 8\)"):
        apply(CutMix(inputs=["rgb", "small"]), x, y)


def test_channels_first():
    x = np.moveaxis(images(), -1, 1)
    y = RNG.integers(0, 4, (ROWS, 2, *SIZES))
    mixed, mask, _ = apply(CutMix(data_format="channels_first"), x, y)
    for before, after in ((x, mixed), (y, mask)):
        np.testing.assert_array_equal(
            np.moveaxis(after, 1, -1), pasted(np.moveaxis(before, 1, -1))
        )
    # One-hot classes come last, whatever the images are like.
    part = CutMix(data_format="channels_first", num_classes=4)
    _, mask, _ = apply(part, x, y[:, 0])
    check(mask, np.eye(4)[pasted(y[:, 0])])
    _, mask, _ = apply(CutMix(data_format="channels_first"), x, y[:, :1])
    np.testing.assert_array_equal(mask[:, 0], pasted(y[:, 0]))


@pytest.mark.parametrize("channels", [(), (2,)])
@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "bool"])
def test_masks_are_pasted(channels, dtype):
    y = RNG.integers(0, 5, (ROWS, *SIZES, *channels)).astype(dtype)
    part = CutMix()
    assert part.encode(y) is y
    _, mask, _ = apply(part, images(), y)
    assert mask.dtype == dtype
    np.testing.assert_array_equal(mask, pasted(y))


def test_masks_with_classes_are_one_hot():
    y = RNG.integers(0, 5, (ROWS, *SIZES))
    part = CutMix(num_classes=5, label_smoothing=0.1)
    _, mask, _ = apply(part, images(), y)
    check(mask, 0.9 * np.eye(5)[pasted(y)] + 0.02)
    _, mask, _ = apply(part, images(), y[..., None])
    check(mask, 0.9 * np.eye(5)[pasted(y)] + 0.02)


@slow_to_compile
def test_sequences_with_targets_of_rank_two():
    """Integers are a value a time step, floats a row a sample."""
    x = images((9,))
    tags = RNG.integers(0, 4, (ROWS, 9))
    _, y, _ = apply(CutMix(), x, tags)
    np.testing.assert_array_equal(y, pasted(tags, (9,)))
    floats = RNG.normal(size=(ROWS, 9)).astype("float32")
    _, y, _ = apply(CutMix(), x, floats)
    check(y, blend(floats, (9,)))
    _, y, _ = apply(CutMix(num_classes=4), x, tags[:, :1])
    check(y, blend(np.eye(4)[tags[:, 0]], (9,)))
    _, y, _ = apply(CutMix(num_classes=4), x, tags)
    check(y, np.eye(4)[pasted(tags, (9,))])


def test_masks_of_another_size():
    for shape in [(ROWS, 5, 7), (ROWS, 4, 8, 1), (ROWS, 5)]:
        y = np.zeros(shape, "int32")
        match = "spatial sizes of the inputs.*Resize"
        if len(shape) == 2:
            match = "Integer targets cannot be blended.*multi_label"
        with pytest.raises(ValueError, match=match):
            apply(CutMix(), images(), y)
    with pytest.raises(ValueError, match="num_classes="):
        CutMix()((images(), np.arange(ROWS)))


def test_masks_of_another_size_in_fit():
    """Refused with the first batch: no weight has changed."""
    net = keras.Sequential(
        [
            keras.Input((*SIZES, 1)),
            keras.layers.Conv2D(2, 1),
            keras.layers.ZeroPadding2D(((0, 0), (0, 1))),
        ]
    )
    model = dlkit.attach(net, CutMix(num_classes=2))
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    before = [keras.ops.convert_to_numpy(v) for v in net.weights]
    y = np.zeros((ROWS, SIZES[0], SIZES[1] + 1), "int32")
    with pytest.raises(ValueError, match="Resize one of the two"):
        model.fit(images()[..., :1], y, verbose=0)
    # Keras on JAX drops the weights when a first step fails.
    left = [] if keras.config.backend() == "jax" else net.weights
    for old, new in zip(before, left):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(new))


def test_weights_keep_losses_linear_in_the_target():
    y = np.eye(3, dtype="float32")[[0, 2, 1, 2, 0, 0]]
    w = np.array([1.0, 2.0, 0.5, 3.0, 0.0, 1.5], "float32")
    _, target, weight = apply(CutMix(), images(), y, w)
    slope = np.array([0.3, -1.0, 2.0])
    check(weight, blend(w))
    check(weight * (target @ slope), blend(w * (y @ slope)))


@pytest.mark.parametrize(
    "shape", [(ROWS,), (ROWS, 1), (ROWS, 1, 1), (ROWS, *SIZES)]
)
def test_weights_of_masks_are_those_of_the_pixels(shape):
    y = RNG.integers(0, 4, (ROWS, *SIZES))
    w = RNG.uniform(0.5, 2, shape).astype("float32")
    _, mask, weight = apply(CutMix(), images(), y, w)
    wide = w if w.shape[1:] == SIZES else w.reshape(ROWS, 1, 1)
    wide = np.broadcast_to(wide, (ROWS, *SIZES)).copy()
    np.testing.assert_array_equal(weight, pasted(wide))
    # Any loss a pixel: weighted, it is that of the pixels of both images.
    loss = RNG.normal(size=4)
    check(weight * loss[mask], pasted(wide * loss[y]))


def test_weights_of_masks_and_labels_at_once():
    y = {
        "mask": RNG.integers(0, 4, (ROWS, *SIZES)),
        "kind": np.eye(3, dtype="float32")[[0, 2, 1, 2, 0, 0]],
    }
    w = RNG.uniform(0.5, 2, ROWS).astype("float32")
    _, target, weight = apply(CutMix(), images(), y, w)
    wide = np.broadcast_to(w[:, None, None], (ROWS, *SIZES)).copy()
    np.testing.assert_array_equal(weight["mask"], pasted(wide))
    check(weight["kind"], blend(w))
    np.testing.assert_array_equal(target["mask"], pasted(y["mask"]))
    with pytest.raises(ValueError, match=r"a pixel must be of shape \(batch,"):
        apply(CutMix(), images(), y["mask"], np.ones((ROWS, 3), "float32"))


def test_inputs_without_space():
    for x in (np.ones((ROWS, 4)), np.ones((ROWS, 2, 2, 2, 2, 1))):
        with pytest.raises(ValueError, match="rank 3 to 5.*MixUp"):
            CutMix()((x, np.zeros(ROWS, "float32")))
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"rank 3 to 5.*\(None, 4\)"):
        dlkit.attach(net, CutMix(num_classes=3))


@pytest.mark.parametrize("arguments", [{"alpha": 0.0}, {"probability": 0.0}])
def test_the_null_settings(arguments):
    data = images(), np.zeros(ROWS, "float32"), np.ones(ROWS, "float32")
    for before, after in zip(data, CutMix(**arguments)(data)):
        assert (before == after).all() and before.dtype == after.dtype


@slow_to_compile
def test_probability_and_active_epochs():
    x = images((6, 6), rows=300)
    y = np.arange(300, dtype="float32")
    half = CutMix(probability=0.5, seed=3)((x, y))[0]
    changed = (half != x).any(axis=(1, 2, 3)).mean()
    assert 0.38 < changed < 0.6
    part = CutMix(active_epochs=(1, 2), seed=0)
    for epoch, changes in [(0, False), (1, True), (2, False)]:
        part.set_epoch(epoch)
        mixed, target = part((x, y))
        assert (mixed != x).any() == (target != y).any() == changes


def test_a_batch_of_one_and_no_targets():
    x = images(rows=1)
    mixed, y = CutMix(num_classes=3)((x, np.array([2])))
    np.testing.assert_array_equal(mixed, x)
    check(y, np.eye(3)[[2]])
    assert CutMix()((images(), None))[1] is None


def test_shares_of_the_layer_are_pixels():
    """Its own draws: constant images average to the blend of the labels."""
    rows = 500
    x = np.arange(rows, dtype="float32")[:, None, None, None]
    x = np.broadcast_to(x, (rows, 7, 9, 1)).copy()
    mixed, y = CutMix(1.0, seed=1)((x, np.arange(rows, dtype="float32")))
    np.testing.assert_allclose(
        mixed.mean(axis=(1, 2, 3), dtype="float64"), y, atol=1e-3
    )
    own = (mixed == x).mean(axis=(1, 2, 3))
    assert own.min() < 0.2 and own.max() > 0.95


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"alpha": -1}, "alpha=-1"),
        ({"data_format": "channels"}, "data_format='channels'"),
        ({"label_smoothing": 0.1}, "needs `num_classes` or `multi_label`"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        CutMix(**arguments)


def test_config():
    part = CutMix(
        0.3, exact_area=False, data_format="channels_first", num_classes=4
    )
    config = keras.saving.serialize_keras_object(part)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == part.get_config()
    assert copy.exact_area is False


def segmenter():
    return keras.Sequential([keras.Input((*SIZES, 3)), keras.layers.Dense(4)])


# From logits: of probabilities stock Keras cannot take it on torch.
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_masks_in_fit_with_a_sparse_loss(weighted):
    """The loss of the step is that of the pixels of both images, weighted."""

    class Fixed(CutMix):
        def draw(self, batch_size, seed):
            return [ops.convert_to_tensor(t) for t in DRAW]

    net = segmenter()
    x, y = images() / 255, RNG.integers(0, 4, (ROWS, *SIZES))
    w = RNG.uniform(0.5, 2, (ROWS, 1, 1)).astype("float32")
    # A network of single pixels: its predictions are pasted as the images are.
    logits = net.predict(x, verbose=0).astype("float64")
    chosen = np.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    pixel_loss = np.log(np.exp(logits).sum(-1)) - chosen
    pixel_loss = pixel_loss * (w if weighted else 1)
    model = dlkit.attach(net, Fixed())
    model.compile("sgd", SPARSE, metrics=["accuracy"])
    history = model.fit(
        x,
        y,
        sample_weight=w if weighted else None,
        batch_size=ROWS,
        shuffle=False,
        verbose=0,
    )
    np.testing.assert_allclose(
        history.history["loss"][0], pasted(pixel_loss).mean(), rtol=1e-5
    )


class Batches(keras.utils.PyDataset):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        x = rng.uniform(size=(ROWS, *SIZES, 3)).astype("float32")
        return self.part((x, rng.integers(0, 4, (ROWS, *SIZES))))


def test_in_a_pydataset():
    net = segmenter()
    net.compile("sgd", SPARSE)
    history = net.fit(Batches(CutMix(seed=0)), verbose=0)
    assert np.isfinite(history.history["loss"][0])
