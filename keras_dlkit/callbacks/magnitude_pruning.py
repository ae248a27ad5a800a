"""Gradual magnitude pruning while a model trains."""

import warnings
from collections.abc import Callable

import keras
import numpy as np

from keras_dlkit import _checks
from keras_dlkit import _host
from keras_dlkit import _keras
from keras_dlkit._kernels import is_matrix
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.callbacks import _masks
from keras_dlkit.callbacks._sparsity_plan import SparsityPlan
from keras_dlkit.ops import _patterns
from keras_dlkit.ops import _pruning
from keras_dlkit.schedules.polynomial_sparsity import ZHU

MISHRA = Paper(
    "Accelerating Sparse Deep Neural Networks",
    "Asit Mishra and Jorge Albericio Latorre and Jeff Pool and "
    "Darko Stosic and Dusan Stosic and Ganesh Venkatesh and Chong "
    "Yu and Paulius Micikevicius",
    2021,
    arxiv="2104.08378",
)


@cites(ZHU)
@cites(
    MISHRA, when=lambda pruning: isinstance(pruning._pattern, _patterns.NOfM)
)
class MagnitudePruning(keras.callbacks.Callback):
    r"""Prunes the smallest weights as a schedule says, in one `fit`.

    With the sparsity \(s_t\) of the schedule, the weights of least \(|w|\) go
    until exactly \(\mathrm{round}(s_t n)\) of \(n\) are zero. Masks only
    grow, and pruned weights are exactly zero after every step and in every
    checkpoint. The callback puts `keras_dlkit.optimizers.Masked` around the
    optimizer that the model was compiled with, whose state stays; one that is
    there already is used with its masks. Models of any kind are pruned as
    they are, attached or not; nothing is cloned.

    Args:
        schedule: `keras_dlkit.schedules.PolynomialSparsity`,
            `ConstantSparsity`, a function from the number of an optimizer
            update, counted from 1, to a sparsity, or a `PruningSchedule` of
            tensorflow-model-optimization as it is (with its own `frequency`).
        every_steps: Integer, at least 1. Masks change before the updates
            `every_steps`, `2 * every_steps`, ..., before the first one and
            the last one of the schedule, and before the last one of `fit`: the
            final sparsity is reached. Defaults to `100`.
        scope: `"global"` ranks all weights together, `"layer"` gives each
            kernel the sparsity of the schedule.
        n_m: `None`, or a pair: of every `m` weights that feed a neuron `n`
            stay, as in `(2, 4)`. The schedule must end at `1 - n / m`.
        block_size: `None`, or a pair of rows and columns: kernels, seen as
            matrices with a column a neuron, lose whole blocks, those of least
            mean \(|w|\). The sparsity is then that of the blocks. Both are of
            kernels of which the last axis alone is that of the outputs, as in
            Dense and Conv layers; others are refused by name.
        include: As in `Masked`: `None` (every kernel and embedding), a
            regular expression searched in `variable.path`, or a function.
        exclude: As in `Masked`.

    Steps are read from the optimizer: with `steps_per_execution` masks change
    before the execution that holds the step, in a second `fit` the schedule
    goes on: one that is longer than `fit` ends at what it has come to. If
    something stops `fit` before its last step, a warning says what is missing;
    also, where the number of steps is not known before (a generator), if
    nothing was pruned at the end.
    The sparsity is in the logs as `sparsity`. `EarlyStopping` with
    `restore_best_weights=True` may bring back weights of a time of fewer
    zeros: list it before this callback, which prunes them at the end.

    State: optimizer variables, those of `Masked`.
    Runs: before a batch, every `every_steps` updates.
    Cost: that of `Masked`; for a change, a partition of the weights on the
        host.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range;
            before training, for a model that is not built or compiled,
            patterns that match nothing, kernels that are no matrices under
            `n_m` or `block_size`, and a schedule that goes down or would prune
            nothing in the steps that there are.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    net.compile("adam", "mse")
    schedule = dlkit.schedules.PolynomialSparsity(
        0.5, begin_step=1, end_step=4
    )
    pruning = dlkit.callbacks.MagnitudePruning(schedule, every_steps=2)
    x, y = np.ones((8, 4)), np.ones((8, 3))
    net.fit(x, y, batch_size=2, callbacks=[pruning], verbose=0)
    assert (net.layers[0].kernel.numpy() == 0).mean() == 0.5
    ```

    References:
        - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878)
        - [Mishra et al., 2021](https://arxiv.org/abs/2104.08378) (2:4)
    """

    def __init__(
        self,
        schedule: Callable,
        *,
        every_steps: int = 100,
        scope: str = "global",
        n_m: tuple[int, int] | None = None,
        block_size: tuple[int, int] | None = None,
        include: str | Callable[[keras.Variable], bool] | None = None,
        exclude: str | Callable[[keras.Variable], bool] | None = None,
    ):
        super().__init__()
        self.schedule = schedule
        self._plan = SparsityPlan(schedule, every_steps)
        self.scope = _checks.check_one_of("scope", scope, _pruning.SCOPES)
        self._pattern = _pattern(n_m, block_size)
        self.include, self.exclude = include, exclude
        self._last = None

    def set_model(self, model):
        super().set_model(model)
        self._net = model
        self._masked, self._is_new = _masks.install(
            model, self.include, self.exclude
        )
        self._chosen = _masks.chosen(self._masked, self.include, self.exclude)
        self._clock = _masks.Clock(model.optimizer)
        if self._pattern.of_matrices:
            self._check_matrices()

    def _check_matrices(self):
        chosen = {id(v) for v in self._chosen.values()}
        for layer in _keras.all_layers(self._net):
            for v in layer.trainable_weights:
                if id(v) in chosen and not is_matrix(layer, v):
                    raise ValueError(
                        "`n_m` and `block_size` see a kernel as a matrix with "
                        "a column a neuron, as those of Dense and Conv layers "
                        f"are. Received: {v.path!r} of shape "
                        f"{tuple(v.shape)}. Leave it out by `exclude`."
                    )

    def on_train_begin(self, logs=None):
        if self._is_new and self.params.get("verbose"):
            print(
                f"MagnitudePruning put `Masked` around the optimizer of "
                f"{self._net.name!r}: {len(self._chosen)} kernels to prune."
            )
        self._clock.set()
        self._last = None
        self._pruned = None
        self._stopped = True
        steps = self.params.get("steps")
        if steps and not self._clock.updates(0):
            _, fit = _keras.running_fit(self)
            first = fit["initial_epoch"] if fit else 0
            epochs = self.params["epochs"] - first
            self._check(0, self._clock.updates(steps * epochs))

    def _check(self, start, end):
        final = self._plan.check(start, end)
        if not isinstance(self._pattern, _patterns.NOfM):
            return
        n, m = self._pattern.n, self._pattern.m
        if abs(final - (1 - n / m)) > 1e-6:
            raise ValueError(
                f"`schedule` must end at the sparsity of the pattern, 1 - n / "
                f"m = {1 - n / m}, within this `fit`. Received: n_m={(n, m)} "
                f"and a schedule that ends it at {final}"
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._clock.set()
        self._done = self._clock.updates(0)
        steps = self.params.get("steps")
        if steps and self._last is None:
            left = self.params["epochs"] - epoch
            self._last = self._clock.updates(steps * left)
            if epoch or self._done:  # now it is known where `fit` begins
                self._check(self._done, self._last)

    def on_train_batch_begin(self, batch, logs=None):
        if self._due(batch) is None:
            return
        self.model  # noqa: B018  # on JAX, gets what the last step has left
        self._clock.set(batch)  # steps may have been skipped
        step = self._due(batch)
        if step is not None:
            self._prune(self._plan.sparsity(step))
            self._done = step

    def _due(self, batch):
        # With several steps in one execution, those of all of them.
        end = batch + (self._net.steps_per_execution or 1)
        end = min(end, self.params.get("steps") or end)
        return self._plan.due(self._done, self._clock.updates(end), self._last)

    def _prune(self, sparsity):
        """Takes so many of the smallest weights that the sparsity is met."""
        if sparsity == self._pruned:
            return  # as after the end of the schedule
        self._pruned = sparsity
        masks = self._masked.masks
        old = [masks[path] for path in self._chosen]
        shapes = [mask.shape for mask in old]
        scores = [np.abs(_host.view(v)) for v in self._chosen.values()]
        scores = _pruning.as_scores(scores)
        scores, units = self._pattern.units(scores, old)
        units = list(units)
        members = _pruning.groups(self.scope, len(shapes))
        for group in members:
            pruned = _pruning.prune_to_sparsity(
                [scores[i] for i in group],
                [units[i] for i in group],
                sparsity * self._reachable([shapes[i] for i in group]),
                "global",
            )
            for i, mask in zip(group, pruned):
                units[i] = mask
        new = self._pattern.expand(units, shapes)
        # A block that lives does not bring back what was pruned in it.
        new = [np.minimum(a, b) for a, b in zip(new, old)]
        if any((a != b).any() for a, b in zip(new, old)):
            self._masked.set_masks(dict(zip(self._chosen, new)))

    def _reachable(self, shapes):
        """What is left of a sparsity where groups are cut off at the edges."""
        if not isinstance(self._pattern, _patterns.NOfM):
            return 1.0
        n, m = self._pattern.n, self._pattern.m
        return self._pattern.sparsity(shapes) / (1 - n / m)

    def on_epoch_end(self, epoch, logs=None):
        self._stopped = epoch + 1 != self.params.get("epochs")
        if not self._stopped:
            # Where the number of steps was not known, or some were skipped.
            updates = self._clock.read() // self._clock.accumulation
            if updates:
                self._prune(self._plan.sparsity(updates))
        if logs is not None:
            logs["sparsity"] = self._sparsity()

    def _sparsity(self):
        masks = self._masked.masks
        live = [masks[path] for path in self._chosen]
        return 1 - _pruning.live_count(live) / sum(m.size for m in live)

    def on_train_end(self, logs=None):
        self._masked.prune()
        done = self._clock.read() // self._clock.accumulation
        if self._last is None:  # the number of steps was not known
            self._check_pruned(done)
        elif done < self._last:
            # With a schedule that is longer a second `fit` goes on.
            end = min(self._last, self._plan.end_step or self._last)
            self._check_reached(done, end)

    def _check_pruned(self, done):
        if self._sparsity() == 0:
            warnings.warn(
                f"`fit` ended at update {done}, and the schedule has pruned "
                f"nothing: it begins at {self._plan.begin_step}, with "
                f"{self.schedule!r}. Begin earlier, or train longer.",
                stacklevel=3,
            )
        elif self._stopped and self._plan.end_step:
            self._check_reached(done, self._plan.end_step)

    def _check_reached(self, done, end):
        reached, final = map(self._plan.sparsity, (done, end))
        if reached < final - 1e-6:
            warnings.warn(
                f"`fit` was stopped at update {done}, before the schedule comes"
                f" to {end}: with a sparsity of {reached:.4g}, not {final:.4g}."
                " Let what stops it wait.",
                stacklevel=3,
            )


def _pattern(n_m, block_size):
    if n_m is not None and block_size is not None:
        raise ValueError(
            "Weights go in one pattern: give `n_m` or `block_size`. Received: "
            f"n_m={n_m!r} and block_size={block_size!r}"
        )
    if n_m is not None:
        n, m = _pair("n_m", n_m)
        if n >= m:
            raise ValueError(
                f"`n_m` must keep n of m weights, n < m. Received: n_m={n_m!r}"
            )
        return _patterns.NOfM(n, m)
    if block_size is not None:
        return _patterns.Blocks(*_pair("block_size", block_size))
    return _patterns.Single()


def _pair(name, value):
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(
            f"`{name}` must be a pair of integers. Received: {name}={value!r}"
        )
    return [
        _checks.check_count(f"{name}[{i}]", v, at_least=1)
        for i, v in enumerate(value)
    ]
