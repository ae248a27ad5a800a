"""Which weights go: a score, over a scope, in a pattern. NumPy, on the host.

A sort on the device takes ten to a hundred times as long as a partition here,
and there is no gradient to keep.
"""

import numpy as np

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


def lowest(scores, count):
    """Where the `count` lowest of flat scores are; ties by lowest index."""
    if count <= 0:
        return np.zeros(scores.shape, bool)
    last = np.partition(scores, count - 1)[count - 1]
    chosen = scores < last
    ties = np.flatnonzero(scores == last)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return chosen


def remove(scores, masks, count):
    """Masks with `count` more zeros, over all arrays as one vector.

    Weights with a score of infinity stay in any case. Only what may go is
    ranked: a partition is slow where many entries are equal.
    """
    live = _flat([np.asarray(mask) != 0 for mask in masks])
    ranked = _flat(scores)
    candidates = live & (ranked < np.inf)
    values = ranked[candidates]
    live[candidates] = ~lowest(values, min(count, values.size))
    ends = np.cumsum([mask.size for mask in masks])[:-1]
    return [
        part.reshape(mask.shape).astype("uint8")
        for part, mask in zip(np.split(live, ends), masks)
    ]


def _flat(arrays):
    return np.concatenate([a.ravel() for a in arrays])


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
