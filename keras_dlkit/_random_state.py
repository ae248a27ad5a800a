"""The random state of a model, which Keras forgets when it saves."""

import keras


class RandomState(keras.layers.Layer):
    """Saves the seed states, in a place of their own in the weights file.

    So that weights of an attached model can be loaded into the plain network,
    and the other way round.
    """

    def __init__(self, states, **kwargs):
        super().__init__(**kwargs)
        self.states = states
        self.built = True

    def save_own_variables(self, store):
        for index, state in enumerate(self.states()):
            store[str(index)] = keras.ops.convert_to_numpy(state)

    def load_own_variables(self, store):
        states = self.states()
        saved = len(store.keys())
        if saved == 0:  # the weights of a plain network
            return
        if saved != len(states):
            raise ValueError(
                "The file must hold the random state of every seed generator "
                f"of the model. Received: {saved} states for {len(states)} "
                "generators: is it a file of this model, with these parts? "
                "Weights alone are read by the network: "
                "`model.model.load_weights(path, skip_mismatch=True)`."
            )
        for index, state in enumerate(states):
            state.assign(store[str(index)])
