"""JAX: the values of the variables outlive an error in a step.

Keras takes them out of the variables for the time of an epoch. What raises in
the first step, or in evaluation, would lose them.
"""

from keras_dlkit import _keras


class KeepsState:
    """Mixed into `TrainStep`."""

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
            self.train_function = self._kept(self.train_function)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = self._kept(self.test_function)

    def make_predict_function(self, force=False):
        if self.predict_function is None or force:
            super().make_predict_function(force)
            self.predict_function = self._kept(self.predict_function)
        return self.predict_function

    def _kept(self, function):
        """A function that runs steps, with `give_back` for its errors."""

        def run(state, iterator):
            try:
                return function(state, iterator)
            except BaseException as error:
                self.give_back(state, error)
                raise

        return run

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
