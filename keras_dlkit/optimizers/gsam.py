"""Surrogate gap guided sharpness-aware minimisation (Zhuang et al., 2022)."""

from typing import Any

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit._train_step import lists
from keras_dlkit.ops.orthogonal_part import ZHUANG
from keras_dlkit.ops.orthogonal_part import orthogonal_part
from keras_dlkit.optimizers.sam import SAM


@cites(ZHUANG)
@export
class GSAM(SAM):
    r"""SAM that also narrows the gap between the loss at w + e and at w.

    With \(g\) the gradient at \(w\), \(s\) that at \(w + e\), with the
    \(e\) of `SAM`, and \(g_\perp\) the part of \(g\) orthogonal to \(s\),
    all weights being one vector, the inner optimizer gets

    $$s - \alpha \, g_\perp, \qquad
      g_\perp = g - \frac{\langle g, s \rangle}{\lVert s \rVert^2} \, s$$

    which is the published form. `minimize_fp=False` is the variant that the
    authors offer beside it, \(g + \alpha \, s_\perp\) with \(s_\perp\) the
    part of \(s\) orthogonal to \(g\). Use it where SAM helps, for the same
    cost; the paper finds the gain in vision transformers.

    The paper lets the radius follow the learning rate \(\eta\),

    $$\rho_t = \rho_{\min} + (\rho - \rho_{\min})
      \frac{\eta_t - \eta_{\min}}{\eta_{\max} - \eta_{\min}}$$

    which `rho_min` and `learning_rate_range` turn on; without them it is
    constant, or the schedule that `rho` is.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`, or the name of one.
        rho: As in `SAM`; with `rho_min`, a float and the largest radius.
        rho_min: `None`, or a float in `[0, rho]`: the radius at the lowest
            learning rate.
        learning_rate_range: `None`, or `(low, high)`, with `rho_min`: the
            learning rates between which the radius goes from `rho_min` to
            `rho`. Outside of them it stays at the end.
        alpha: Float, at least 0. 0 is SAM. Defaults to `0.4`.
        minimize_fp: Boolean. Whether to start from the gradient of the
            perturbed loss \(f_p\) (published) or of the loss itself.
        **kwargs: `adaptive`, `eta`, `variables`, `every_steps`, `start_step`,
            `micro_batches` and `name`, as in `SAM`.

    `variables` says what is moved; the gradients of all weights are combined.

    State: none of its own; the inner optimizer's variables.
    Runs: in the train step of `keras_dlkit.attach`, two gradients a step.
    Cost: that of `SAM`, and two inner products of gradients; measured in
        `benchmarks/README.md`. Under `MirroredStrategy` also one more sum of
        gradients over the replicas.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range, or
            `rho_min` without a range of learning rates.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    rate = keras.optimizers.schedules.CosineDecay(1e-3, decay_steps=1000)
    optimizer = dlkit.optimizers.GSAM(
        keras.optimizers.AdamW(rate),
        rho=0.6, rho_min=0.1, learning_rate_range=(0.0, 1e-3),
    )
    ```

    References:
        - [Zhuang et al., 2022](https://arxiv.org/abs/2203.08065)
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        rho: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        *,
        rho_min: float | None = None,
        learning_rate_range: tuple[float, float] | None = None,
        alpha: float = 0.4,
        minimize_fp: bool = True,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, rho, **kwargs)
        if (rho_min is None) != (learning_rate_range is None):
            raise ValueError(
                "`rho_min` and `learning_rate_range` go together: the radius "
                "is `rho_min` at the lowest learning rate and `rho` at the "
                f"highest. Received: rho_min={rho_min}, "
                f"learning_rate_range={learning_rate_range}"
            )
        self.rho_min = self.learning_rate_range = None
        if rho_min is not None:
            self._set_range(rho_min, learning_rate_range)
        self.alpha = _checks.check_number("alpha", alpha, at_least=0)
        self.minimize_fp = bool(minimize_fp)

    def _set_range(self, rho_min, learning_rate_range):
        if not hasattr(self.inner_optimizer, "learning_rate"):
            raise ValueError(
                "With `rho_min` the radius follows the learning rate of the "
                "inner optimizer, which must have one. Received: "
                f"{self.inner_optimizer!r}. Give `rho` a schedule instead."
            )
        if callable(self.rho):
            raise ValueError(
                "With `rho_min` the radius follows the learning rate, and "
                "`rho` must be a number. Received: "
                f"rho={self.rho!r}, rho_min={rho_min}"
            )
        self.rho_min = _checks.check_number(
            "rho_min", rho_min, at_least=0, at_most=self.rho
        )
        pair = learning_rate_range
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(
                "`learning_rate_range` must be a pair `(low, high)`. "
                f"Received: learning_rate_range={pair!r}"
            )
        low, high = (
            _checks.check_number("learning_rate_range", rate, at_least=0)
            for rate in pair
        )
        if low >= high:
            raise ValueError(
                "`learning_rate_range` must be `(low, high)` with low < high. "
                f"Received: learning_rate_range={learning_rate_range}"
            )
        self.learning_rate_range = low, high

    def radius(self):
        if self.rho_min is None:
            return super().radius()
        low, high = self.learning_rate_range
        rate = ops.convert_to_tensor(self.learning_rate)
        share = ops.clip((rate - low) / (high - low), 0.0, 1.0)
        return self.rho_min + (self.rho - self.rho_min) * share

    def combine(self, clean, ascent):
        if self.minimize_fp:
            gap = orthogonal_part(clean, ascent)
            return lists.sums(ascent, gap, -self.alpha)
        gap = orthogonal_part(ascent, clean)
        return lists.sums(clean, gap, self.alpha)

    def get_config(self):
        return {
            **super().get_config(),
            "rho_min": self.rho_min,
            "learning_rate_range": self.learning_rate_range,
            "alpha": self.alpha,
            "minimize_fp": self.minimize_fp,
        }
