"""Which epoch it is, for the parts that are active in some."""

import keras


class EpochCounter(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        for part in self.model.batch_parts:
            part.set_epoch(epoch)
