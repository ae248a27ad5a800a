"""The noise of an SDE as a function of the epoch."""

from collections.abc import Callable

import keras

from keras_dlkit import _checks
from keras_dlkit import _keras
from keras_dlkit._papers import cites
from keras_dlkit.layers.concatenate_time import KONG
from keras_dlkit.layers.sde_block import SDEBlock


@cites(KONG)
class SigmaSchedule(keras.callbacks.Callback):
    """Sets the noise of all `SDEBlock`s of a model at the start of an epoch.

    It is a variable of the block: nothing is compiled anew.

    Args:
        schedule: Function of the epoch (from 0) to the noise, at least 0; or a
            dict `{epoch: noise}`, each from its epoch on. Before the first of
            them the noise stays what it is.
        inference: Boolean. Sets `sigma_inference` instead of `sigma`.

    State: none; the noise is saved with the model.
    Runs: once an epoch.
    Cost: none.

    Raises:
        TypeError, ValueError: At construction, for what is no schedule; before
            the first step, for a noise below 0 in any epoch of the `fit`, and
            for a model without an `SDEBlock`.

    Example:

    ```python
    import keras_dlkit as dlkit

    dlkit.callbacks.SigmaSchedule({0: 0.1, 30: 0.5})  # as in the paper
    ```

    References:
        - [Kong et al., 2020](https://arxiv.org/abs/2008.10546)
    """

    def __init__(self, schedule: Callable, *, inference: bool = False):
        super().__init__()
        if isinstance(schedule, dict):
            for epoch, sigma in schedule.items():
                _checks.check_count("schedule: an epoch", epoch, at_least=0)
                _check_sigma(sigma, epoch)
        elif not callable(schedule):
            raise TypeError(
                "`schedule` must be a function of the epoch, or a dict "
                f"{{epoch: sigma}}. Received: schedule={schedule!r}"
            )
        self.schedule = schedule
        self.inference = bool(inference)

    def on_train_begin(self, logs=None):
        blocks = self._blocks()
        if not blocks:
            raise ValueError(
                "SigmaSchedule sets the noise of the `SDEBlock`s of a model. "
                f"Received: a model {self.model.name!r} without any."
            )
        for block in blocks:
            if self.inference and block.sigma_inference is block.sigma:
                raise ValueError(
                    "`inference=True` sets a noise of its own for inference. "
                    f"Received: {block.name!r} with sigma_inference=None, "
                    "which is the noise of training. Give it a number."
                )
        for epoch in range(self.params.get("epochs") or 0):
            self._sigma_at(epoch)

    def on_epoch_begin(self, epoch, logs=None):
        sigma = self._sigma_at(epoch)
        if sigma is None:
            return
        for block in self._blocks():
            name = "sigma_inference" if self.inference else "sigma"
            getattr(block, name).assign(sigma)

    def _sigma_at(self, epoch):
        if isinstance(self.schedule, dict):
            begun = [e for e in self.schedule if e <= epoch]
            return self.schedule[max(begun)] if begun else None
        return _check_sigma(self.schedule(epoch), epoch)

    def _blocks(self):
        return [
            layer
            for layer in _keras.all_layers(self.model)
            if isinstance(layer, SDEBlock)
        ]


def _check_sigma(sigma, epoch):
    return _checks.check_number(
        f"schedule: the noise of epoch {epoch}", float(sigma), at_least=0
    )
