"""Masks against a stable sort in float64 NumPy."""

import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit.ops import _patterns
from keras_dlkit.ops import _pruning

magnitude_masks = dlkit.ops.magnitude_masks


def by_sort(weights, masks, rate):
    """The living in the order in which they go, by a stable sort."""
    flat = np.concatenate([np.ravel(w) for w in weights]).astype("float64")
    keep = np.concatenate([np.ravel(m) for m in masks]).astype(bool)
    live = [i for i in range(len(flat)) if keep[i]]
    order = sorted(live, key=lambda i: abs(flat[i]))
    for index in order[: round(rate * len(live))]:
        keep[index] = False
    ends = np.cumsum([np.size(w) for w in weights])[:-1]
    return [
        part.reshape(np.shape(w))
        for part, w in zip(np.split(keep, ends), weights)
    ]


def arrays(seed, shapes=((7, 5), (3, 2, 4), (6,)), ties=False, dead=0.3):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=shape) for shape in shapes]
    if ties:
        weights = [np.round(2 * w) for w in weights]
    masks = [(rng.uniform(size=s) > dead).astype("uint8") for s in shapes]
    return [w.astype("float32") for w in weights], masks


def same(a, b):
    return all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(a, b))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dead", [0.0, 0.3, 1.0])
def test_global_masks_equal_a_stable_sort(rate, ties, dead):
    for seed in range(5):
        weights, masks = arrays(seed, ties=ties, dead=dead)
        assert same(
            magnitude_masks(weights, masks, rate), by_sort(weights, masks, rate)
        )


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_layers_are_ranked_each_alone(rate):
    weights, masks = arrays(0, ties=True)
    expected = [by_sort([w], [m], rate)[0] for w, m in zip(weights, masks)]
    assert same(magnitude_masks(weights, masks, rate, scope="layer"), expected)


def test_of_equal_weights_the_lowest_index_goes_first():
    weights = [np.ones(3), np.array([1.0, -1.0])]
    masks = [np.ones(3), np.ones(2)]
    got = magnitude_masks(weights, masks, 0.8)
    assert [m.tolist() for m in got] == [[0, 0, 0], [0, 1]]


def test_exactly_the_count_goes_where_weights_are_zero():
    """Zeros that live are told apart from zeros that are pruned."""
    weights = [np.zeros(10)]
    masks = [np.array([0, 1] * 5)]
    (got,) = magnitude_masks(weights, masks, 0.4)
    assert got.tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 0, 1]


def test_tensors_in_and_bytes_out():
    weights, masks = arrays(1)
    tensors = [ops.convert_to_tensor(w) for w in weights]
    got = magnitude_masks(tensors, masks, 0.2)
    assert same(got, by_sort(weights, masks, 0.2))
    assert {m.dtype for m in got} == {np.dtype("uint8")}
    got[0][:] = 0
    assert masks[0].any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"pruning_rate": 1.0}, "less than 1"),
        ({"pruning_rate": -0.1}, "at least 0"),
        ({"pruning_rate": 0.1, "scope": "model"}, "scope"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        magnitude_masks([np.ones(3)], [np.ones(3)], **arguments)


def test_bad_arrays():
    with pytest.raises(ValueError, match="nan.*array 1 of 2"):
        magnitude_masks(
            [np.ones(2), np.array([1.0, np.nan])], [np.ones(2)] * 2, 0.5
        )
    with pytest.raises(ValueError, match=r"shapes.*\(3,\)"):
        magnitude_masks([np.ones(2)], [np.ones(3)], 0.5)


def test_a_score_of_infinity_stays_whatever_the_count():
    (got,) = _pruning.remove(
        [np.array([np.inf, 2, 1, np.inf])], [np.ones(4)], 4
    )
    assert got.tolist() == [1, 0, 0, 1]


def test_to_a_sparsity_never_goes_back():
    weights, masks = arrays(2, dead=0.0)
    scores = [np.abs(w) for w in weights]
    size = sum(w.size for w in weights)
    dead = []
    for sparsity in (0.3, 0.1, 0.5, 0.9):
        before = masks
        masks = _pruning.prune_to_sparsity(scores, masks, sparsity, "global")
        dead.append(size - sum(int(m.sum()) for m in masks))
        assert all((m <= b).all() for m, b in zip(masks, before))
    assert dead == [round(s * size) for s in (0.3, 0.3, 0.5, 0.9)]


@pytest.mark.parametrize("shape", [(8, 3), (10, 3), (3, 3, 2, 5)])
@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (3, 4), (1, 3)])
def test_n_of_m_keeps_the_n_strongest_of_each_group(shape, n, m):
    weights, masks = arrays(3, [shape], dead=0.0)
    pattern = _patterns.NOfM(n, m)
    scores, units = pattern.units([np.abs(w) for w in weights], masks)
    got = _pruning.prune_to_sparsity(
        scores, units, pattern.sparsity([shape]), "global"
    )
    (got,) = pattern.expand(got, [shape])
    matrix = np.abs(weights[0].astype("float64")).reshape(-1, shape[-1])
    expected = np.zeros(matrix.shape, bool)
    for column in range(matrix.shape[1]):
        for start in range(0, len(matrix), m):
            group = matrix[start : start + m, column]
            for index in sorted(range(len(group)), key=lambda i: -group[i])[:n]:
                expected[start + index, column] = True
    assert (got.reshape(expected.shape) == expected).all()


def test_n_of_m_on_the_way_takes_no_more_than_it_may():
    weights, masks = arrays(4, [(16, 6), (8, 4)], dead=0.0)
    pattern = _patterns.NOfM(2, 4)
    for sparsity in (0.1, 0.3, 0.5):
        scores, _ = pattern.units([np.abs(w) for w in weights], masks)
        masks = _pruning.prune_to_sparsity(scores, masks, sparsity, "global")
        for mask in masks:
            groups = mask.reshape(-1, 4, mask.shape[-1]).sum(1)
            assert groups.min() >= 2
        size, live = 128, sum(int(m.sum()) for m in masks)
        assert size - live == round(sparsity * size)


def test_blocks_go_whole_the_weakest_means_first():
    (weights,), (mask,) = arrays(5, [(5, 7)], dead=0.0)
    blocks = _patterns.Blocks(2, 3)
    scores, units = blocks.units([np.abs(weights)], [mask])
    assert scores[0].shape == (3, 3)
    got = _pruning.prune_to_sparsity(scores, units, 4 / 9, "global")
    (got,) = blocks.expand(got, [weights.shape])
    means = {
        (i, j): np.abs(weights[i : i + 2, j : j + 3].astype("float64")).mean()
        for i in (0, 2, 4)
        for j in (0, 3, 6)
    }
    expected = np.ones((5, 7))
    for i, j in sorted(means, key=means.get)[:4]:
        expected[i : i + 2, j : j + 3] = 0
    assert (got == expected).all()


@pytest.mark.parametrize("count", [1, 700, 45_000, 149_990, 150_000])
@pytest.mark.parametrize("kind", ["normal", "ties", "unlike its sample"])
def test_many_weights_are_ranked_as_by_a_sort(kind, count):
    """A sample brackets the last score; where it misleads, all are ranked."""
    rng = np.random.default_rng(count)
    flat = np.abs(rng.normal(size=150_010)).astype("float32")
    if kind == "ties":
        flat = np.round(flat, 1)
    elif kind == "unlike its sample":
        # All that a sample with any small stride sees first is large.
        flat[: flat.size // 2] += 10.0
        flat[:: 1 + flat.size // _pruning.SAMPLE] += 100.0
    flat[rng.choice(flat.size, 10, replace=False)] = np.inf
    arrays = [flat[:90_000].reshape(300, 300), flat[90_000:]]
    masks = [np.ones(a.shape, "uint8") for a in arrays]
    got = _pruning.remove(arrays, masks, count)
    want = np.ones(flat.size, "uint8")
    want[np.argsort(flat, kind="stable")[:count]] = 0
    np.testing.assert_array_equal(
        np.concatenate([g.ravel() for g in got]), want
    )
