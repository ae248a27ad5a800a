"""What a series of rounds and a `fit` must have in common."""

from keras_dlkit import _checks


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
