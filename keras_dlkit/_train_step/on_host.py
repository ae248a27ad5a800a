"""JAX: what is done on the host, around the compiled steps."""

import jax
import keras
import numpy as np

from keras_dlkit import _keras
from keras_dlkit._tree import map_leaves


class OnHost:
    """Mixed into `TrainStep`: an error in a step loses nothing.

    Keras takes the values out of the variables for the time of an epoch. What
    raises in the first step, or in evaluation, would lose them.
    """

    def fit(self, *args, **kwargs):
        vars(self)["_state_of_error"] = None
        try:
            return super().fit(*args, **kwargs)
        except BaseException:
            # Again: Keras has since put averages in the place of the weights,
            # if its optimizer keeps them, and before a first step these are 0.
            self.give_back(vars(self).get("_state_of_error"))
            raise
        finally:
            vars(self).pop("_state_of_error", None)

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = self._guarded(self.train_function)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = self._guarded(self.test_function)

    def make_predict_function(self, force=False):
        if self.predict_function is None or force:
            super().make_predict_function(force)
            self.predict_function = self._guarded(self.predict_function)
        return self.predict_function

    def _guarded(self, function):
        """A function that runs steps, on what is checked, and `give_back`."""

        def run(state, iterator):
            try:
                return function(state, self.checked(iterator))
            except BaseException as error:
                self.give_back(state, error)
                raise

        return run

    def checked(self, iterator):
        """Batches, of which the parts have looked at the labels.

        A step that is compiled cannot raise. Only those of the host: of others
        the device would be waited for.
        """
        for data in iterator:
            _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
            for part in self.batch_parts:
                part.check_labels(map_leaves(_of_host, y))
            yield data

    def give_back(self, state, error=None):
        """Puts the state that a step was given into the variables."""
        if state is None:
            return
        _keras.give_state_back(self, state)
        # The end of the data is no error.
        if "_state_of_error" in vars(self) and not isinstance(
            error, StopIteration
        ):
            vars(self)["_state_of_error"] = state


def _of_host(array):
    if not isinstance(array, jax.Array) or not array.is_fully_addressable:
        return array
    if any(device.platform != "cpu" for device in array.devices()):
        return array
    return np.asarray(array)
