"""Convolutions for the members of an ensemble, of any number of axes."""

import numpy as np
from keras import ops

from keras_dlkit.layers._members import FastLayer


class ChannelLayer(FastLayer):
    """A layer with an axis of channels, first or last."""

    @property
    def channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    def scaled_channels(self, inputs, function, **options):
        axis = self.channel_axis
        return self.scaled(
            inputs, function, input_axes=axis, output_axes=axis, **options
        )


class ConvMembers(ChannelLayer):
    kernels = {"kernel": ""}

    def build(self, input_shape):
        channels = input_shape[self.channel_axis]
        self.add_scales("kernel", (channels,), (self.filters,))
        super().build(input_shape)

    def call(self, inputs):
        return self.activated(
            self.scaled_channels(
                inputs,
                self._convolved,
                biases=self.biases(),
            )
        )

    def _convolved(self, x):
        padding = self.padding
        if padding == "causal":  # of Conv1D
            left = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            pads = [[0, 0], [0, 0], [0, 0]]
            pads[1 if self.channel_axis == -1 else 2][0] = left
            x, padding = ops.pad(x, pads), "valid"
        return ops.conv(
            x,
            self.kernel,
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    def kernel_factor(self, name, r, s):
        # Each group of filters sees its group of channels.
        terms, g = len(r), self.groups
        factor = np.einsum(
            "kgi,kgo->igo", r.reshape(terms, g, -1), s.reshape(terms, g, -1)
        )
        return factor.reshape(-1, s.shape[-1])


class DepthwiseMembers(ChannelLayer):
    kernels = {"kernel": ""}

    def build(self, input_shape):
        channels = input_shape[self.channel_axis]
        outputs = channels * self.depth_multiplier
        self.add_scales("kernel", (channels,), (outputs,))
        super().build(input_shape)

    def call(self, inputs):
        return self.activated(
            self.scaled_channels(
                inputs,
                lambda x: ops.depthwise_conv(
                    x,
                    self.kernel,
                    strides=self.strides,
                    padding=self.padding,
                    dilation_rate=self.dilation_rate,
                    data_format=self.data_format,
                ),
                biases=self.biases(),
            )
        )

    def kernel_factor(self, name, r, s):
        return depthwise_factor(r, s)


class SeparableMembers(ChannelLayer):
    """Two kernels, each with its own r and s."""

    kernels = {"depthwise_kernel": "depthwise_", "pointwise_kernel": ""}

    def build(self, input_shape):
        channels = input_shape[self.channel_axis]
        between = channels * self.depth_multiplier
        self.add_scales("depthwise_kernel", (channels,), (between,))
        self.add_scales("pointwise_kernel", (between,), (self.filters,))
        super().build(input_shape)

    def call(self, inputs):
        hidden = self.scaled_channels(
            inputs,
            lambda x: ops.depthwise_conv(
                x,
                self.depthwise_kernel,
                strides=self.strides,
                padding=self.padding,
                dilation_rate=self.dilation_rate,
                data_format=self.data_format,
            ),
            kernel="depthwise_kernel",
        )
        return self.activated(
            self.scaled_channels(
                hidden,
                lambda x: ops.conv(
                    x, self.pointwise_kernel, data_format=self.data_format
                ),
                kernel="pointwise_kernel",
                biases=self.biases(),
            )
        )

    def kernel_factor(self, name, r, s):
        if name == "depthwise_kernel":
            return depthwise_factor(r, s)
        return np.einsum("ki,ko->io", r, s)


def depthwise_factor(r, s):
    """The outputs of a channel lie next to each other."""
    terms, channels = r.shape
    return np.einsum("kc,kcj->cj", r, s.reshape(terms, channels, -1))
