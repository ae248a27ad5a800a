"""Scale and shift after a normalization, for the members of an ensemble."""

from keras import ops

from keras_dlkit.layers._members import MemberLayer
from keras_dlkit.ops.batch_ensemble import aligned
from keras_dlkit.ops.batch_ensemble import per_member


class AffineMembers(MemberLayer):
    """A normalization of each row by itself; `standardized` says which."""

    def call(self, inputs):
        outputs = self.standardized(ops.cast(inputs, "float32"))
        if self.scale or self.center:
            outputs = per_member(outputs, self._moved, self.ensemble_size)
        return ops.cast(outputs, self.compute_dtype)

    def _moved(self, outputs):
        rank = len(outputs.shape) - 1
        axes = (
            self.axis if isinstance(self.axis, (list, tuple)) else [self.axis]
        )
        axes = sorted(axis % rank for axis in axes)
        if self.scale:
            outputs = outputs * aligned(_value(self.gamma), axes, rank)
        if self.center:
            outputs = outputs + aligned(_value(self.beta), axes, rank)
        return outputs


def _value(variable):
    return ops.cast(ops.convert_to_tensor(variable), "float32")
