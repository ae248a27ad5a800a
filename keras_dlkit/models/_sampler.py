"""The predictions of `SDENet.predict_uncertainty`, for Keras to compile."""

import keras
from keras import ops

from keras_dlkit import _keras
from keras_dlkit.layers._sde_nets import masked
from keras_dlkit.ops.uncertainty import categorical_uncertainty
from keras_dlkit.ops.uncertainty import gaussian_uncertainty


class Sampler(keras.Model):
    """Its `predict` is a pass of many paths of a batch."""

    def __init__(self, net, samples):
        super().__init__(dtype=net.dtype_policy, autocast=False)
        self.net, self.samples = net, samples
        self.built = True

    def call(self, inputs):
        net = self.net
        hidden = net.stem(inputs)
        paths, diffusion = net.block.sample_with_diffusion(hidden, self.samples)
        shape = ops.shape(paths)
        paths = ops.reshape(paths, (-1, *shape[2:]))
        mask = _keras.get_mask(hidden)
        if mask is not None:
            mask = ops.tile(mask, (self.samples, 1))
        outputs = net.head(masked(paths, mask))
        outputs = ops.reshape(
            outputs, (self.samples, -1, *ops.shape(outputs)[1:])
        )
        found = self._uncertainty(ops.cast(outputs, "float32"))
        axes = tuple(range(1, len(diffusion.shape)))
        found["diffusion"] = ops.mean(ops.cast(diffusion, "float32"), axis=axes)
        return found

    def _uncertainty(self, outputs):
        if self.net.outputs_are == "mean_and_scale":
            return gaussian_uncertainty(*ops.split(outputs, 2, axis=-1))
        if outputs.shape[-1] == 1:
            raise ValueError(
                "`predict_uncertainty` is of classes, an output each, or of "
                "a mean and a scale. Received: a head with one output. Give it"
                " two, with a categorical loss, or `outputs='mean_and_scale'`."
            )
        # Of all paths of a row: for `SDENet` to look at.
        sums = ops.sum(outputs, axis=-1)
        found = {
            "_least": ops.min(outputs, axis=(0, -1)),
            "_sum": ops.mean(sums, axis=0),
            "_off": ops.max(ops.abs(sums - 1.0), axis=0),
        }
        if self.net.outputs_are == "logits":
            outputs = ops.softmax(outputs)
        return {**found, **categorical_uncertainty(outputs)}
