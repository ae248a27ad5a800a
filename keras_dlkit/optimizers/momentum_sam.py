"""Momentum-SAM (Becker et al., 2024): sharpness for one gradient a step."""

from typing import Any

import keras
from keras import ops

from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.optimizers.attached_optimizer import AttachedOptimizer
from keras_dlkit.optimizers.neighbourhood import Neighbourhood
from keras_dlkit.optimizers.wrapper_optimizer import innermost

# The optimizers of Keras that keep a momentum. That of SGD is one of steps, and
# points the other way than those of gradients, or of scaled ones (RMSprop).
STEPS = (keras.optimizers.SGD,)
GRADIENTS = (
    keras.optimizers.Adam,
    keras.optimizers.Adamax,
    keras.optimizers.Lamb,
    keras.optimizers.Lion,
    keras.optimizers.Muon,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
)


BECKER = Paper(
    "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead",
    "Marlon Becker and Frederick Altrock and Benjamin Risse",
    2024,
    arxiv="2401.12033",
)


@cites(BECKER)
@export
class MomentumSAM(Neighbourhood, AttachedOptimizer):
    r"""Takes the one gradient of a step at a point moved along the momentum.

    With \(v\) the momentum of the inner optimizer, in the sense of the
    gradient, from the step before,

    $$e = -\rho \, \frac{T^2 v}{\lVert T v \rVert_2 + 10^{-12}}, \qquad
      \text{inner optimizer gets } \nabla L(w + e) \text{ at } w$$

    with \(T\) as in `SAM`. There is no second gradient: it costs what the
    inner optimizer costs. Use it where SAM helps and its cost does not fit;
    `rho` is larger than for SAM.

    The published code writes \(w + e\) into the weights and has to be told to
    take it back. Here the point exists inside the step alone: callbacks,
    evaluation and checkpoints see \(w\), and weight decay acts on \(w\). The
    loss, the metrics and the batch-normalisation statistics of training are
    those at \(w + e\), the one point that is passed.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer` that keeps a momentum, or
            the name of one: Adam and its kin, Lion, Lamb, Muon, and SGD and
            RMSprop with `momentum` above 0.
        rho: Float, at least 0, or a
            `keras.optimizers.schedules.LearningRateSchedule` of the number of
            updates. The radius. 0 is the inner optimizer, bit for bit. The
            authors' code starts at 0.3 with SGD and at 1 with AdamW; their
            best are up to 3.
        **kwargs: `adaptive`, `eta`, `variables`, `start_step` and `name`, as
            in `SAM`. `every_steps` would save nothing, and of micro-batches
            all have the same momentum: there are neither.

    State: none of its own; the inner optimizer's momentum.
    Runs: in the train step of `keras_dlkit.attach`, one gradient a step.
    Cost: one moved copy of the weights; measured in `benchmarks/README.md`.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range, and
            for an inner optimizer without momentum.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer = dlkit.optimizers.MomentumSAM(inner, rho=0.3)
    ```

    References:
        - [Becker et al., 2024](https://arxiv.org/abs/2401.12033)
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        rho: float | keras.optimizers.schedules.LearningRateSchedule,
        **kwargs: Any,
    ):
        refused = {"every_steps", "micro_batches"} & kwargs.keys()
        if refused:
            raise TypeError(
                "MomentumSAM takes one gradient a step, so that `every_steps` "
                "would save nothing, and moves all parts of a batch alike, so "
                "that there is no `micro_batches`. Received: "
                f"{ {name: kwargs[name] for name in sorted(refused)} }. Leave "
                "it out, or use `SAM`."
            )
        super().__init__(inner_optimizer, rho, **kwargs)
        inner = innermost(self)
        known = isinstance(inner, (*STEPS, *GRADIENTS))
        rates = {
            name: getattr(inner, name)
            for name in ("momentum", "beta_1")
            if hasattr(inner, name)
        }
        if not known or 0 in rates.values():
            raise ValueError(
                "MomentumSAM moves along the momentum of the inner optimizer, "
                "which must keep one: "
                f"{', '.join(k.__name__ for k in GRADIENTS)}, or SGD; SGD and "
                "RMSprop with `momentum`, the others with `beta_1` above 0. "
                f"Received: inner_optimizer={type(inner).__name__} with {rates}"
            )

    def build(self, variables):
        super().build(variables)
        momenta = [
            v for v in innermost(self).variables if v.name.endswith("_momentum")
        ]
        if len(momenta) != len(variables):
            raise ValueError(
                f"{type(innermost(self)).__name__} must have a momentum for "
                f"each of the {len(variables)} trainable weights. Received: "
                f"{[v.name for v in momenta]}"
            )
        # Past `__setattr__`, which would make them variables of this optimizer.
        vars(self)["_momenta"] = {id(v): m for v, m in zip(variables, momenta)}

    def lookahead(self, weights, variables):
        sign = 1.0 if isinstance(innermost(self), STEPS) else -1.0
        momenta = self._momenta
        vectors = [
            None if v is None else sign * ops.convert_to_tensor(momenta[id(v)])
            for v in self.selected(variables, variables)
        ]
        return self.to_border(vectors, weights, variables)

    def radius(self):
        started = ops.convert_to_tensor(self.iterations) >= self.start_step
        return super().radius() * ops.cast(started, "float32")
