"""Lottery tickets (Frankle and Carbin, 2019): iterative magnitude pruning.

Train, prune the smallest weights, put the others back to where they began,
and again: the network that is left trains as well as the whole one did.
"""

import os
import warnings
from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np

from keras_dlkit import _checks
from keras_dlkit import _keras
from keras_dlkit._kernels import is_kernel
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.callbacks import _masks
from keras_dlkit.callbacks import _ticket_checks
from keras_dlkit.callbacks import _ticket_report
from keras_dlkit.callbacks._checkpoint import Checkpoint
from keras_dlkit.callbacks._reinitialize import redraw
from keras_dlkit.callbacks._round_callbacks import RoundCallbacks
from keras_dlkit.callbacks._snapshot import Snapshot
from keras_dlkit.callbacks._ticket_masks import EarlyBird
from keras_dlkit.callbacks._ticket_masks import MaskRule
from keras_dlkit.callbacks._ticket_state import TicketState
from keras_dlkit.callbacks._ticket_state import floats
from keras_dlkit.ops.magnitude_masks import FRANKLE

NAME = "lottery_ticket"


FRANKLE_STABLE = Paper(
    "Stabilizing the Lottery Ticket Hypothesis",
    "Jonathan Frankle and Gintare Karolina Dziugaite and Daniel M. "
    "Roy and Michael Carbin",
    2019,
    arxiv="1903.01611",
)
ZHOU = Paper(
    "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask",
    "Hattie Zhou and Janice Lan and Rosanne Liu and Jason Yosinski",
    2019,
    "Advances in Neural Information Processing Systems",
    arxiv="1905.01067",
)
RENDA = Paper(
    "Comparing Rewinding and Fine-tuning in Neural Network Pruning",
    "Alex Renda and Jonathan Frankle and Michael Carbin",
    2020,
    "International Conference on Learning Representations",
    arxiv="2003.02389",
)
YOU = Paper(
    "Drawing Early-Bird Tickets: Towards More Efficient Training of "
    "Deep Networks",
    "Haoran You and Chaojian Li and Pengfei Xu and Yonggan Fu and "
    "Yue Wang and Xiaohan Chen and Richard G. Baraniuk and "
    "Zhangyang Wang and Yingyan Lin",
    2020,
    "International Conference on Learning Representations",
    arxiv="1909.11957",
)


@cites(FRANKLE)
@cites(FRANKLE_STABLE, when=lambda ticket: isinstance(ticket.rewind, int))
@cites(ZHOU, when=lambda ticket: ticket._settings["score"] != "magnitude")
@cites(RENDA, when=lambda ticket: ticket.rewind == "learning_rate")
@cites(YOU, when=lambda ticket: ticket._bird.threshold is not None)
class LotteryTicket(TicketState, keras.callbacks.Callback):
    r"""Finds lottery tickets: rounds of training and pruning in one `fit`.

    Round 0 trains the whole network. Each round after it first prunes
    \(\mathrm{round}(p n)\) of the \(n\) weights that live, those of least
    \(|w|\), and puts the others back to where they began. A round has
    `epochs_per_round` epochs, and `fit` is given `rounds * epochs_per_round`
    of them.

    The callback puts `keras_dlkit.optimizers.Masked` around the optimizer
    that the model was compiled with; one that is there already is used, with
    its masks. Models of any kind, attached or not, are trained as they are;
    nothing is cloned. What goes back in time goes back as a whole: weights,
    batch statistics, the optimizer and the place in its learning-rate
    schedule.

    Args:
        rounds: Integer, at least 1. Round 0, of the whole network, counts.
        epochs_per_round: Integer, at least 1.
        pruning_rate: Float in `[0, 1)`. \(p\), per round. Defaults to `0.2`.
        output_pruning_rate: `None` for the same, or the rate of the last
            kernel of the model (of several outputs, that of the last), which
            is ranked alone where its rate is another; the paper's is half of
            `pruning_rate`.
        scope: `"global"` ranks all weights together, `"layer"` each kernel
            alone.
        score: What makes a weight worth keeping: `"magnitude"`, another
            criterion of Zhou et al. (`"large_initial"`,
            `"large_initial_large_final"`, `"magnitude_increase"`,
            `"movement"`, `"large_final_same_sign"`,
            `"large_final_different_sign"`, `"small_final"`,
            `"small_initial"`, `"small_initial_small_final"`), or a function
            of the arrays of a kernel at the begin and the end to scores, of
            which the lowest go.
        rewind: `"init"` puts the weights back to where training began, an
            integer to where they were after so many updates of round 0 (for
            larger networks, 1% to 7% of training); the rounds after it have
            all their epochs all the same, and end so much later in a schedule.
            `"learning_rate"` leaves the weights as trained and puts the
            optimizer back; `None` goes on (fine-tuning).
        control: `None`, or what a ticket is compared with: `"reinitialize"`
            draws the weights anew each round, `"random_masks"` prunes at
            random over the scope, `"shuffle_masks"` at random within each
            kernel, as many as magnitude would.
        early_bird: `None`, or a number in `(0, 1]`, such as `0.1`: a round
            ends as soon as the mask that would be taken now differs from each
            of the four epochs before in less than this share of its entries;
            with `control`, the mask that it would take without.
        include: As in `Masked`: `None` (every kernel and embedding), a
            regular expression searched in `variable.path`, or a function.
        exclude: As in `Masked`.
        callbacks: Callbacks to start anew with each round, with epochs
            counted from its begin: `EarlyStopping` ends the round,
            `ReduceLROnPlateau` starts from the first learning rate (with
            `rewind=None` from the one it came to). Those that act on batches
            or on validation go into the list of `fit`, `SwapEMAWeights`
            before this one; if that swaps on epochs, a killed run goes on by
            `keras_dlkit.callbacks.Resume` alone.
        checkpoint_dir: `None`, or a folder for the state of each epoch, to go
            on from if the process is killed; it is removed when all rounds
            are done. `BackupAndRestore` in the list of `fit`, before or after
            this one, does the same.
        seed: Integer for `control`; drawn from NumPy if `None`.

    `history` is a list with a dictionary a round: `density`, `densities` by
    kernel, `best` (the least validation loss, or loss), `best_step` (in
    updates of the round), the logs `at_best` and `last`. `masks` are those of
    now. With `verbose` a table is printed, a line a round; `round` and
    `density` are in the logs. A run that was killed at any moment goes on
    from the last epoch that was saved, and ends with the same weights,
    optimizer and masks, bit for bit, with data in a fixed order.

    State: optimizer variables, those of `Masked`; on the host, and in what is
        saved during `fit`, the weights and the optimizer of the point to go
        back to.
    Runs: at the begin and the end of epochs.
    Cost: that of `Masked`; between rounds, a partition of the weights.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range;
            before training, for a number of epochs that is not that of the
            rounds, a model that is not built or compiled, patterns that match
            nothing, and a step beyond the first round.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    net.compile("adam", "mse")
    ticket = dlkit.callbacks.LotteryTicket(3, epochs_per_round=2)
    x, y = np.ones((8, 4)), np.ones((8, 5))
    net.fit(x, y, epochs=3 * 2, callbacks=[ticket], verbose=0)
    assert [row["density"] for row in ticket.history] == [1.0, 0.8, 0.65]
    ```

    References:
        - [Frankle and Carbin, 2019](https://arxiv.org/abs/1803.03635)
        - [Frankle et al., 2019](https://arxiv.org/abs/1903.01611) (step k)
        - [Zhou et al., 2019](https://arxiv.org/abs/1905.01067) (criteria)
        - [Renda et al., 2020](https://arxiv.org/abs/2003.02389) (learning
          rate)
        - [You et al., 2020](https://arxiv.org/abs/1909.11957) (early bird)
    """

    def __init__(
        self,
        rounds: int,
        epochs_per_round: int,
        *,
        pruning_rate: float = 0.2,
        output_pruning_rate: float | None = None,
        scope: str = "global",
        score: str | Callable = "magnitude",
        rewind: str | int | None = "init",
        control: str | None = None,
        early_bird: float | None = None,
        include: str | Callable[[keras.Variable], bool] | None = None,
        exclude: str | Callable[[keras.Variable], bool] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        checkpoint_dir: str | os.PathLike | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        count = _checks.check_count
        self.rounds = count("rounds", rounds, at_least=1)
        self.epochs_per_round = count(
            "epochs_per_round", epochs_per_round, at_least=1
        )
        self._rule = MaskRule(
            pruning_rate, output_pruning_rate, scope, score, control
        )
        self._bird = EarlyBird(early_bird)
        self.rewind = _ticket_checks.checked_rewind(rewind)
        self.include, self.exclude = include, exclude
        self._inner = RoundCallbacks(callbacks)
        self._checkpoint = checkpoint_dir and Checkpoint(checkpoint_dir)
        self.seed = None if seed is None else count("seed", seed, at_least=0)
        # Those that a series of rounds cannot change on its way.
        self._settings = {
            "rounds": self.rounds,
            "epochs_per_round": self.epochs_per_round,
            "pruning_rate": self._rule.rate,
            "output_pruning_rate": (
                self._rule.output_rate if self._rule.has_output_rate else None
            ),
            "scope": scope,
            "score": score if isinstance(score, str) else "own",
            "rewind": self.rewind,
            "control": control,
            "early_bird": self._bird.threshold,
        }
        self._masked = None
        self._reset()

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks as NumPy arrays, by the path of the weight."""
        if self._masked is None:
            raise ValueError(
                "There are masks as soon as `fit` has begun. Received: a "
                "`LotteryTicket` that was not given to one yet"
            )
        masks = self._masked.masks
        return {path: masks[path] for path in self._chosen}

    def plot(self, path: str | os.PathLike) -> None:
        """Draws the metric and the step of the least loss by density."""
        if not self.history:
            raise ValueError(
                "`plot` draws rounds that are done. Received: a history of none"
            )
        _ticket_report.plot(self.history, path)

    # Before training.

    def set_model(self, model):
        super().set_model(model)
        self._net = model
        masked, self._is_new = _masks.install(model, self.include, self.exclude)
        # Of a `fit` that was refused.
        waiting = self.waiting if masked is self._masked else {}
        self._masked = masked
        self._reset()
        self.set_state(waiting)
        self._chosen = _masks.chosen(self._masked, self.include, self.exclude)
        self._clock = _masks.Clock(model.optimizer)
        last = _masks.last_kernel(model)
        self._output = next(
            (path for path, v in self._chosen.items() if v is last), None
        )
        if self._rule.has_output_rate and last is not None:
            _ticket_checks.check_output(
                self._output, last, self.include, self.exclude
            )
        self._masked.carry(NAME, self)

    def set_params(self, params):
        super().set_params(params)
        self._inner.set(self._net, params)

    def on_train_begin(self, logs=None):
        self._check_fit()
        _ticket_checks.check_order(self, saves=bool(self._checkpoint))
        if self._is_new:
            self._say(
                "LotteryTicket put `Masked` around the optimizer of "
                f"{self._net.name!r}: {len(self._chosen)} kernels to prune."
            )
        if self._checkpoint and self._checkpoint.load(self._net):
            self._begin_after()
        self._follow_backup()

    def _check_fit(self):
        _ticket_checks.check_epochs(
            self.rounds, self.epochs_per_round, self.params.get("epochs")
        )
        self._rule.check(_masks.values(self._chosen.values()))
        steps = self.params.get("steps")
        if steps and isinstance(self.rewind, int):
            _ticket_checks.check_step(
                self.rewind,
                steps,
                self.epochs_per_round,
                self._clock.accumulation,
                self._net.steps_per_execution or 1,
            )

    def _say(self, text):
        if self.params.get("verbose"):
            print(text)

    # Rounds.

    def on_epoch_begin(self, epoch, logs=None):
        # Of this `fit` alone, also where `BackupAndRestore` has set it.
        _keras.begin_at_epoch(self._net, None)
        self._clock.set()
        self._epoch, self._batch, self._validation = epoch, 0, None
        self._know_steps()
        if self._meta is not None:
            self._resume(epoch)
        elif self._round is None:
            self._start(epoch)
        if self._round_is_over(epoch) and self._round + 1 < self.rounds:
            self._next_round(epoch)
        self._has_begun = True
        self._inner.call("on_epoch_begin", epoch - self._round_start)

    def _round_is_over(self, epoch):
        done = epoch - self._round_start
        return self._is_over or done >= self.epochs_per_round

    def _start(self, epoch):
        if epoch:
            raise ValueError(
                "A `fit` that begins in the middle needs the state of the "
                "rounds before, from `checkpoint_dir`, `BackupAndRestore` or "
                f"a model saved during `fit`. Received: epoch {epoch} and none"
            )
        self._round = 0
        self._start_updates = self._clock.updates(0)
        if self.seed is None and self._rule.control is not None:
            self.seed = int(np.random.randint(2**31))
        self._begin = Snapshot.take(self._net, self._masked)
        if self.rewind == 0:
            self._point = self._begin
        self._inner.call("on_train_begin")

    def _next_round(self, epoch):
        self._inner.call("on_train_end")
        masks = self._next_masks()
        if isinstance(self.rewind, int):
            self._check_point()
            self._point.restore(self._net, self._masked)
        elif self.rewind == "init":
            self._begin.restore(self._net, self._masked)
        elif self.rewind == "learning_rate":
            self._begin.restore(self._net, self._masked, weights=False)
        self._round += 1
        redrawn = self._rule.control == "reinitialize"
        if redrawn:
            self._reinitialize()
        if redrawn or self.rewind == "learning_rate":
            # Else weights and slots are of one moment.
            self._begin.copy_again(self._net, self._masked)
        if redrawn:
            # Of this round, for scores that look back.
            self._begin = Snapshot.take(self._net, self._masked)
        self._masked.set_masks(masks)
        self._round_start, self._epochs, self._is_over = epoch, [], False
        self._bird.clear()
        self._clock.set()
        self._start_updates = self._clock.updates(0)
        self._inner.call("on_train_begin")

    def _check_point(self):
        if self._point is None:
            raise ValueError(
                "`rewind` must be a step that the first round comes to, and at"
                " which no execution of several steps is under way. Received: "
                f"rewind={self.rewind}; the round had {self._updates(0)} "
                "updates, and may have been ended early"
            )

    def on_train_batch_begin(self, batch, logs=None):
        self._batch = batch
        if self._point is not None or not isinstance(self.rewind, int):
            return
        if self._round == 0 and self._updates(batch) >= self.rewind:
            self.model  # noqa: B018  # on JAX, gets what the last step left
            self._clock.set(batch)  # steps may have been skipped
            if self._updates(batch) == self.rewind:
                self._point = Snapshot.take(self._net, self._masked)
            elif self._updates(batch) > self.rewind:
                self._check_point()

    def _updates(self, batch):
        """Updates of the round before the batch."""
        return self._clock.updates(batch) - self._start_updates

    # Masks.

    def _next_masks(self, control=True):
        variables = self._chosen.values()
        initial = [self._begin.weight(self._net, v) for v in variables]
        final = _masks.values(variables)
        return self._rule.next(
            self.masks, self._output, initial, final, self._rng, control
        )

    def _rng(self):
        """Of this round: the same after a restart."""
        return np.random.default_rng([self.seed, self._round])

    def _reinitialize(self):
        """Draws all kernels anew, those too that are not pruned."""
        chosen = {id(v) for v in self._chosen.values()}
        variables = [
            v
            for v in self._net.trainable_variables
            if id(v) in chosen or is_kernel(v)
        ]
        initial = [self._begin.weight(self._net, v) for v in variables]
        values = redraw(self._net, variables, initial, self._rng())
        for v, array in zip(variables, values):
            v.assign(array)

    # The end of an epoch.

    def on_test_begin(self, logs=None):
        self._logs = floats(self._net.get_metrics_result())

    def on_test_end(self, logs=None):
        self._validation = {
            **self._logs,
            **{f"val_{k}": v for k, v in floats(logs or {}).items()},
        }

    def on_epoch_end(self, epoch, logs=None):
        if self._final is not None:
            return  # all was done before
        logs = {} if logs is None else logs
        self._last_batch = self._batch
        added = self._close(epoch, floats(logs))
        logs.update({k: v for k, v in added.items() if k not in logs})
        if self._checkpoint:
            self._checkpoint.save(self._net)

    def _close(self, epoch, logs):
        """What the end of an epoch means for the round."""
        self._closed = epoch
        density, _ = _ticket_report.densities(self.masks)
        logs.update(round=self._round, density=density)
        stopping, self._net.stop_training = self._net.stop_training, False
        self._inner.call("on_epoch_end", epoch - self._round_start, logs)
        self._is_over = self._net.stop_training
        self._net.stop_training = stopping
        self._clock.set()
        logs = {**floats(logs), "round": self._round}
        self._epochs.append({**logs, "step": self._updates(0)})
        if self._bird.threshold is not None and self._round + 1 < self.rounds:
            # Random masks of one seed would be alike in all epochs.
            self._is_over |= self._bird.hatches(self._next_masks(control=False))
        if self._round_is_over(epoch + 1):
            self._finish_round()
        return logs

    def _finish_round(self):
        if len(self.history) == self.rounds:
            return  # was done before it was killed
        row = _ticket_report.make_row(self._round, self.masks, self._epochs)
        self.history.append(row)
        if self._round == 0:
            self._say(_ticket_report.header(row))
        self._say(_ticket_report.line(row))
        if self._round + 1 == self.rounds:
            self._net.stop_training = True

    def on_train_end(self, logs=None):
        _keras.begin_at_epoch(self._net, None)
        if self._meta is not None:  # killed after its last epoch
            self._clock.set()
            self._resume(self.params["epochs"])
        if self._final is not None:
            self._final.restore(self._net, self._masked)
            self._net.optimizer.finalize_variable_values(
                self._net.trainable_weights
            )
        self._inner.call("on_train_end")
        self._masked.prune()
        if len(self.history) < self.rounds:
            warnings.warn(
                f"`fit` ended after {len(self.history)} of {self.rounds} "
                "rounds. An `EarlyStopping` is to be given to `LotteryTicket("
                "callbacks=[...])`, to end a round and not all of them.",
                stacklevel=2,
            )
            return
        self._masked.carry(NAME, None)
        if self._checkpoint:
            self._checkpoint.delete()
