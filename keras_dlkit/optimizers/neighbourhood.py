"""The ball around the weights in which the SAM family looks."""

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit.ops.sam import sam_perturbation

# Weights that shift an activation have no scale to be relative to.
SHIFTS = ("bias", "beta")


class Neighbourhood:
    """Mixed into optimizers: `rho`, `adaptive` and `eta`, as `SAM` says them.

    Args:
        rho: Float, at least 0, or a
            `keras.optimizers.schedules.LearningRateSchedule` of the number of
            updates.
        adaptive: `None`, `"weights"` or `"all"`.
        eta: Float, at least 0.
        **kwargs: Those of the base that it is mixed into.
    """

    def __init__(
        self, inner_optimizer, rho, *, adaptive=None, eta=0.01, **kwargs
    ):
        super().__init__(inner_optimizer, **kwargs)
        if not isinstance(rho, keras.optimizers.schedules.LearningRateSchedule):
            rho = _checks.check_number("rho", rho, at_least=0)
        self.rho = rho
        self.adaptive = _checks.check_one_of(
            "adaptive", adaptive, (None, "weights", "all")
        )
        self.eta = _checks.check_number("eta", eta, at_least=0)

    @property
    def is_plain(self):
        return self.rho == 0

    def radius(self):
        """`rho` of this step."""
        if callable(self.rho):
            return self.rho(ops.convert_to_tensor(self.iterations))
        return self.rho

    def to_border(self, vectors, weights, variables):
        """The vectors, made as long as the ball is wide there."""
        return sam_perturbation(
            vectors,
            weights,
            self.radius(),
            scales=self._scales(weights, variables),
        )

    def _scales(self, weights, variables):
        if self.adaptive is None:
            return None
        if self.adaptive == "all":
            return [ops.abs(w) for w in weights]
        return [
            None
            if v.name.rsplit("_", 1)[-1] in SHIFTS
            else ops.abs(w) + self.eta
            for w, v in zip(weights, variables)
        ]

    def get_config(self):
        rho = self.rho
        if callable(rho):
            rho = keras.saving.serialize_keras_object(rho)
        return {
            **super().get_config(),
            "rho": rho,
            "adaptive": self.adaptive,
            "eta": self.eta,
        }
