"""What a pass over the batch assigns to variables, held back."""

import keras


class Pass(keras.StatelessScope):
    """A scope that keeps what is assigned in it, of any variable, for later.

    Both passes of a step begin where it began, and no weight is copied for it.
    """

    def __init__(self, variables, point):
        super().__init__(list(zip(variables, point)), collect_losses=True)
        self._updates = {}

    def add_update(self, update):
        super().add_update(update)
        self._updates[id(update[0])] = update

    def assign(self, but=()):
        """Assigns it, but to the variables that stood at another point."""
        moved = set(map(id, but))
        for variable, value in self._updates.values():
            if id(variable) not in moved:
                variable.assign(value)
