"""Boxes, and what is pasted and filled by them, against loops in NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit

SIZES = [(1,), (7,), (1, 5), (8, 8), (5, 9), (224, 3), (3, 4, 5), (7, 7, 7)]
SIZES += [(80, 60)]  # large rows are moved one by one on PyTorch


def boxes_by_hand(lam, centers, sizes):
    """Float64, pixel by pixel along each axis."""
    boxes, shares = [], []
    for share, center in zip(lam.astype("float64"), centers):
        starts, ends, left = [], [], 1.0
        for place, size in zip(center, sizes):
            length = int(np.rint(size * (1 - share) ** (1 / len(sizes))))
            first = place - length // 2
            pixels = [p for p in range(first, first + length) if 0 <= p < size]
            starts.append(pixels[0] if pixels else max(first, 0))
            ends.append(pixels[-1] + 1 if pixels else starts[-1])
            left *= len(pixels) / size
        boxes.append(starts + ends)
        shares.append(1 - left)
    return np.array(boxes), np.array(shares)


def draws(sizes, rows=200, seed=0):
    rng = np.random.default_rng(seed)
    # Shares whose lengths are no halves, which float32 might round elsewhere.
    lam = rng.uniform(size=rows)
    lengths = np.stack(
        [n * (1 - lam) ** (1 / len(sizes)) for n in sizes], axis=1
    )
    lam = lam[(np.abs(lengths % 1 - 0.5) > 1e-3).all(axis=1)]
    lam[:2] = 0, 1
    centers = np.stack([rng.integers(0, n, len(lam)) for n in sizes], axis=1)
    return lam.astype("float32"), centers


@pytest.mark.parametrize("sizes", SIZES)
def test_boxes_and_their_exact_share(sizes):
    lam, centers = draws(sizes)
    boxes, share = map(
        ops.convert_to_numpy, dlkit.ops.cut_mix_boxes(lam, centers, *sizes)
    )
    expected, expected_share = boxes_by_hand(lam, centers, sizes)
    rank = len(sizes)
    np.testing.assert_array_equal(boxes, expected)
    np.testing.assert_allclose(share, expected_share, atol=1e-6)
    assert (boxes[:, :rank] >= 0).all() and (boxes[:, rank:] <= sizes).all()
    assert (boxes[:, rank:] >= boxes[:, :rank]).all()
    assert share[1] == 1  # exactly: nothing is cut where lam is 1


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_the_pixels_pasted_are_the_share_and_come_from_the_partner(
    sizes, channels
):
    lam, centers = draws(sizes, rows=9)
    rows = len(lam)
    boxes, share = dlkit.ops.cut_mix_boxes(lam, centers, *sizes)
    permutation = np.random.default_rng(1).permutation(rows)
    images = np.arange(rows * np.prod(sizes + channels))
    images = images.reshape(rows, *sizes, *channels).astype("int32")
    mixed = ops.convert_to_numpy(dlkit.ops.cut_mix(images, permutation, boxes))
    own = mixed == images
    pasted = mixed == images[permutation]
    assert (own | pasted).all()
    away = permutation != np.arange(rows)
    axes = tuple(range(1, images.ndim))
    np.testing.assert_allclose(
        own.mean(axis=axes)[away], ops.convert_to_numpy(share)[away], atol=1e-6
    )
    for row, box in enumerate(ops.convert_to_numpy(boxes)):
        expected = images[row].copy()
        window = tuple(map(slice, box[: len(sizes)], box[len(sizes) :]))
        expected[window] = images[permutation[row]][window]
        np.testing.assert_array_equal(mixed[row], expected)


@pytest.mark.parametrize("sizes", [(5, 7), (50, 70)])
def test_one_box_for_all_and_channels_first(sizes):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 2, *sizes)).astype("float32")
    permutation, boxes = np.array([1, 2, 0]), np.array([[1, 2, 4, 7]])
    mixed = dlkit.ops.cut_mix(images, permutation, boxes, axis=2)
    expected = images.copy()
    expected[:, :, 1:4, 2:7] = images[permutation][:, :, 1:4, 2:7]
    np.testing.assert_array_equal(ops.convert_to_numpy(mixed), expected)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "bool"])
def test_any_dtype_is_kept(dtype):
    images = ops.cast(np.arange(24).reshape(2, 3, 4, 1) % 2, dtype)
    boxes = np.array([[0, 0, 2, 2]] * 2)
    for out in (
        dlkit.ops.cut_mix(images, np.array([1, 0]), boxes),
        dlkit.ops.cut_out(images, boxes[:, None], 1),
    ):
        assert keras.backend.standardize_dtype(out.dtype) == dtype


@pytest.mark.parametrize("width", [5, 300])
def test_cut_out_fills_the_union_of_its_boxes(width):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 6, width, 3)).astype("float32")
    boxes = np.array(
        # From before the image to beyond it; and boxes that are empty.
        [[[-1, 1, 3, 4], [2, 2, 6, width + 1]]] * 3
        + [[[2, 2, 2, 2], [3, 3, 1, 4]]]
    )
    fill = np.array([1.0, 2.0, 3.0])
    expected = images.copy()
    for row in range(3):
        expected[row, :3, 1:4] = expected[row, 2:6, 2:] = fill
    cut = ops.convert_to_numpy(dlkit.ops.cut_out(images, boxes, fill))
    np.testing.assert_array_equal(cut, expected)


def test_the_mean_share_is_that_of_a_simulation():
    """Beta(1, 1): what is cut off at the border lifts the mean from 1/2."""
    rng = np.random.default_rng(3)
    rows, size = 4000, 32
    lam = rng.uniform(size=rows)
    length = np.rint(size * np.sqrt(1 - lam))
    cut = []
    for _ in range(2):
        first = rng.integers(0, size, rows) - length // 2
        cut.append(np.clip(first + length, 0, size) - np.clip(first, 0, size))
    expected = 1 - np.mean(cut[0] * cut[1]) / size**2
    draws = dlkit.ops.sample_beta(1.0, (rows,), keras.random.SeedGenerator(5))
    centers = rng.integers(0, size, (rows, 2))
    _, share = dlkit.ops.cut_mix_boxes(draws, centers, size, size)
    mean = ops.convert_to_numpy(share).mean()
    error = np.sqrt(2) * 0.27 / np.sqrt(rows)  # of the difference of two means
    assert abs(mean - expected) < 4 * error
    assert mean > 0.65


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="column for each.*2 sizes"):
        dlkit.ops.cut_mix_boxes(np.ones(2), np.zeros((2, 3), "int32"), 4, 4)
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        dlkit.ops.cut_mix(np.ones((2, 3)), [1, 0], np.zeros((2, 4), "int32"))
