"""What a series of rounds and a `fit` must have in common."""

import keras

from keras_dlkit import _checks
from keras_dlkit import _keras


def checked_rewind(rewind):
    if rewind in (None, "init", "learning_rate"):
        return rewind
    if isinstance(rewind, str):
        _checks.check_one_of(
            "rewind", rewind, ("init", "learning_rate", None, "a step")
        )
    return _checks.check_count("rewind", rewind, at_least=0)


def check_epochs(rounds, epochs_per_round, epochs):
    expected = rounds * epochs_per_round
    if epochs != expected:
        raise ValueError(
            "`fit` must be given rounds x epochs_per_round epochs: "
            f"{rounds} x {epochs_per_round} = {expected} (round 0, of the "
            f"whole network, counts). Received: epochs={epochs}"
        )


def check_output(path, kernel, include, exclude):
    """Raises for a rate of the last kernel if that is not to be pruned.

    Args:
        path: String, or `None` where it is left out.
        kernel: `keras.Variable`.
        include: As in `LotteryTicket`.
        exclude: As in `LotteryTicket`.
    """
    if path is None:
        raise ValueError(
            "`output_pruning_rate` is that of the last kernel of the model, "
            f"{kernel.path!r}, which is left out. Received: include="
            f"{include!r}, exclude={exclude!r}. Leave the rate out, too."
        )


def check_order(ticket, saves):
    """Raises for averages in the weights when rounds change, or are saved.

    Args:
        ticket: `LotteryTicket`, in a hook of `fit`.
        saves: Boolean. Whether it saves epochs itself.
    """
    running, _ = _keras.running_fit(ticket)
    callbacks = running.callbacks if running else []
    swapping = [
        place
        for place, c in enumerate(callbacks)
        if isinstance(c, keras.callbacks.SwapEMAWeights) and c.swap_on_epoch
    ]
    saving = [
        place
        for place, c in enumerate(callbacks)
        if isinstance(c, keras.callbacks.BackupAndRestore)
        or (saves and c is ticket)
    ]
    if not swapping:
        return
    expected = (
        "`SwapEMAWeights(swap_on_epoch=True)` has the averages in the weights "
        "from the end of an epoch to the begin of the next. "
    )
    if any(c is ticket for c in callbacks[: swapping[-1]]):
        raise ValueError(
            f"{expected}Received: one that comes after `LotteryTicket`, which "
            "changes rounds at that begin. List it before."
        )
    if any(place > swapping[0] for place in saving):
        raise ValueError(
            f"{expected}Received: a `checkpoint_dir` or `BackupAndRestore` "
            "that would save them as weights. List `BackupAndRestore` before "
            "it, or use `keras_dlkit.callbacks.Resume`."
        )


def check_step(rewind, steps, epochs, accumulation, together):
    """Raises for a step to go back to that the first round does not stop at.

    Args:
        rewind: Integer. The step.
        steps: Integer. The batches of an epoch.
        epochs: Integer. The epochs of the round.
        accumulation: Integer. The batches of an update.
        together: Integer. The batches of an execution.
    """
    updates = steps * epochs // accumulation
    if rewind >= updates:
        raise ValueError(
            "`rewind` must be a step within the first round, which has "
            f"{updates} updates. Received: rewind={rewind}"
        )
    if rewind * accumulation % steps % together:
        raise ValueError(
            "`rewind` must be a step at which an execution begins, of "
            f"{together} steps. Received: rewind={rewind}"
        )
