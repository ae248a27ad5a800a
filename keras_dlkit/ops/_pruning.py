"""Which weights go: a score, over a scope, in a pattern. NumPy, on the host.

A sort on the device takes ten to a hundred times as long, and there is no
gradient to keep.
"""

import math

import numpy as np

# Scores that a sample has, at most.
SAMPLE = 20_000
SCOPES = ("global", "layer")


def as_scores(arrays):
    """The arrays as they are ranked; what has no rank is refused."""
    for index, array in enumerate(arrays):
        if array.size and not array.min() > -np.inf:  # so NaN too
            raise ValueError(
                "Weights that are to be pruned must be numbers. Received: "
                f"{array.min()} among the scores of array {index} of "
                f"{len(arrays)}. Has the training diverged?"
            )
    return [
        array if array.dtype == np.float64 else np.asarray(array, "float32")
        for array in arrays
    ]


def remove(scores, masks, count):
    """Masks with `count` more zeros, over all arrays as one vector.

    The lowest scores go; ties by lowest index. Weights with a score of
    infinity stay in any case.

    A sample says between which two scores the last one to go must be. What lies
    there is ranked: a partition of the whole takes several times as long.
    """
    scores = [array.ravel() for array in scores]
    live = [np.asarray(mask).ravel() != 0 for mask in masks]
    size = sum(map(np.count_nonzero, live))
    count = min(count, size)
    low, high = _bounds(scores, live, count / max(size, 1))
    stays, near, rest = _split(scores, live, low, high, count)
    if not 0 <= rest <= sum(map(len, near)):  # a sample unlike the whole
        stays, near, rest = _split(scores, live, -np.inf, np.inf, count)
    values = np.concatenate([s[i] for s, i in zip(scores, near)])
    kept = ~_flags(values, rest)
    ends = np.cumsum([len(i) for i in near])[:-1]
    for flags, indices, some in zip(stays, near, np.split(kept, ends)):
        flags[indices[some]] = True
    return [
        flags.view("uint8").reshape(mask.shape)
        for flags, mask in zip(stays, masks)
    ]


def _split(scores, live, low, high, count):
    """The living above `high`, the indices of those from `low` up to it.

    And how many of these go, where all below `low` do.
    """
    stays = [a & (s > high) for a, s in zip(live, scores)]
    below = [a & (s < low) for a, s in zip(live, scores)]
    near = [np.flatnonzero(a ^ b ^ c) for a, b, c in zip(live, stays, below)]
    return stays, near, count - sum(map(np.count_nonzero, below))


def _bounds(scores, live, share):
    """Two scores between which, most likely, the last one to go is."""
    step = 1 + sum(s.size for s in scores) // SAMPLE
    sample = np.sort(
        np.concatenate([s[::step][a[::step]] for s, a in zip(scores, live)])
    )
    place = int(share * sample.size)
    # Some four standard deviations of the place.
    margin = 2 + 2 * math.isqrt(sample.size)
    low = sample[place - margin] if place >= margin else -np.inf
    high = sample[place + margin] if place + margin < sample.size else np.inf
    return low, high


def _flags(values, count):
    """Where the `count` lowest are, of those that are finite."""
    if count == 0:
        return np.zeros(values.shape, bool)
    last = np.partition(values, count - 1)[count - 1]
    chosen = values < last
    if last < np.inf:
        ties = np.flatnonzero(values == last)
        chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return chosen


def groups(scope, count):
    """The indices of arrays that are ranked together."""
    indices = range(count)
    return [list(indices)] if scope == "global" else [[i] for i in indices]


def live_count(masks):
    return sum(np.count_nonzero(mask) for mask in masks)


def prune_groups(scores, masks, members, counts):
    """`remove` a group of arrays after the other."""
    pruned = list(masks)
    for group, count in zip(members, counts):
        result = remove(
            [scores[i] for i in group], [masks[i] for i in group], count
        )
        for i, mask in zip(group, result):
            pruned[i] = mask
    return pruned


def prune_by_rate(scores, masks, rates, scope):
    """So many of the living go: `round(rate * live)` of each group.

    Args:
        scores: List of arrays; the lowest go.
        masks: List of arrays of 0 and 1.
        rates: The rate of each array; under a global scope, arrays of one
            rate are a group.
        scope: `"global"` or `"layer"`.
    """
    members = groups(scope, len(masks))
    if scope == "global":
        members = [
            [i for i, r in enumerate(rates) if r == rate]
            for rate in dict.fromkeys(rates)
        ]
    counts = [
        round(rates[group[0]] * live_count([masks[i] for i in group]))
        for group in members
    ]
    return prune_groups(scores, masks, members, counts)


def prune_to_sparsity(scores, masks, sparsity, scope):
    """So many go that `round(sparsity * size)` of each group are gone."""
    members = groups(scope, len(masks))
    counts = []
    for group in members:
        size = sum(masks[i].size for i in group)
        dead = size - live_count([masks[i] for i in group])
        counts.append(max(0, round(sparsity * size) - dead))
    return prune_groups(scores, masks, members, counts)
