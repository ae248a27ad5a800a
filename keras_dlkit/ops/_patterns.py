"""The shapes in which weights go: one by one, n of m, or in blocks.

A pattern turns scores and masks of kernels into those of its units, among
which `_pruning` chooses, and the masks of units back into those of kernels.
Kernels are seen as matrices: all axes but the last are rows.
"""

import numpy as np


class Single:
    """Each weight for itself."""

    # Whether it sees kernels as matrices, with a column a neuron.
    of_matrices = False

    def units(self, scores, masks):
        return scores, masks

    def expand(self, masks, shapes):
        del shapes
        return masks


class NOfM:
    """Of every `m` weights that feed a neuron, `n` stay.

    Units are the weights; those that must stay rank above all others. A last
    group of fewer than `m` also keeps `n`.
    """

    of_matrices = True

    def __init__(self, n, m):
        self.n, self.m = n, m

    def units(self, scores, masks):
        kept = [self._raise(*pair) for pair in zip(scores, masks)]
        return kept, masks

    def _raise(self, scores, mask):
        ranked = np.where(mask, scores, -np.inf)
        matrix = ranked.reshape(-1, scores.shape[-1])
        rows, columns = matrix.shape
        padding = -rows % self.m
        padded = np.pad(matrix, ((0, padding), (0, 0)), constant_values=-np.inf)
        groups = padded.reshape(-1, self.m, columns)
        order = np.argsort(groups, axis=1, kind="stable")
        stays = np.zeros(groups.shape, bool)
        np.put_along_axis(stays, order[:, self.m - self.n :], True, axis=1)
        stays = stays.reshape(-1, columns)[:rows].reshape(scores.shape)
        return np.where(stays & (mask != 0), np.inf, scores)

    def expand(self, masks, shapes):
        del shapes
        return masks

    def sparsity(self, shapes):
        """The largest sparsity that leaves `n` of each group."""
        size = sum(np.prod(shape) for shape in shapes)
        gone = sum(self._gone(shape) for shape in shapes)
        return float(gone / size)

    def _gone(self, shape):
        rows, columns = np.prod(shape[:-1]), shape[-1]
        rest = max(0, rows % self.m - self.n)
        return columns * (rows // self.m * (self.m - self.n) + rest)


class Blocks:
    """Blocks of `rows` by `columns`, each as strong as its mean.

    At the edges of a kernel blocks are smaller.
    """

    of_matrices = True

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns

    def units(self, scores, masks):
        return (
            [self._mean(s) for s in scores],
            [(self._mean(m) > 0).astype("uint8") for m in masks],
        )

    def _mean(self, array):
        matrix = np.asarray(array, "float64").reshape(-1, array.shape[-1])
        starts = [
            np.arange(0, size, step)
            for size, step in zip(matrix.shape, (self.rows, self.columns))
        ]

        def pooled(values):
            values = np.add.reduceat(values, starts[0], axis=0)
            return np.add.reduceat(values, starts[1], axis=1)

        return pooled(matrix) / pooled(np.ones_like(matrix))

    def expand(self, masks, shapes):
        return [self._repeat(*pair) for pair in zip(masks, shapes)]

    def _repeat(self, mask, shape):
        whole = mask.repeat(self.rows, axis=0).repeat(self.columns, axis=1)
        rows = int(np.prod(shape[:-1]))
        return np.ascontiguousarray(
            whole[:rows, : shape[-1]].reshape(shape), "uint8"
        )
