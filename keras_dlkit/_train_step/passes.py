"""The two passes of a step over the batch, and what they assign."""

import contextlib

import keras


class FirstPass(keras.StatelessScope):
    """A pass as it is in Keras, which notes what its assignments replace.

    The variables in `at`, pairs of a variable and a value, have that value in
    it, and keep their own after it. `read` gives a value that stays.
    """

    def __init__(self, read, at=()):
        super().__init__(at, collect_losses=True)
        self._read = read
        self._replaced = {}

    def add_update(self, update):
        variable, value = update
        if id(variable) in self.state_mapping:
            super().add_update(update)
            return
        if id(variable) not in self._replaced:
            self._replaced[id(variable)] = variable, self._read(variable)
        with self._left():
            variable.assign(value)

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        # Keras gives what it gets here to the regularizer, also `None`.
        if value is None and variable.regularizer is not None:
            with self._left():
                return variable.value
        return value

    @contextlib.contextmanager
    def _left(self):
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def before(self):
        """Pairs of a variable that was assigned and the value it had."""
        return list(self._replaced.values())


def second_pass(first, at):
    """A scope that begins where `first` began, and assigns nothing."""
    return keras.StatelessScope([*first.before(), *at], collect_losses=True)
