"""Manifold MixUp (Verma et al., 2019): blend hidden values, not inputs."""

from typing import Any

from keras_dlkit._export import export
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.layers.mixing_part import MixingPart

VERMA = Paper(
    "Manifold Mixup: Better Representations by Interpolating Hidden States",
    "Vikas Verma and Alex Lamb and Christopher Beckham and Amir "
    "Najafi and Ioannis Mitliagkas and David Lopez-Paz and Yoshua "
    "Bengio",
    2019,
    "International Conference on Machine Learning",
    arxiv="1806.05236",
)


@cites(VERMA)
@export
class ManifoldMixUp(MixingPart):
    r"""Blends the output of a layer in pairs of samples, and their targets.

    With \(h = g(x)\) the output of the layer `at`, \(f\) the rest of the
    network, a random permutation \(\pi\) and \(\lambda_i \sim
    \text{Beta}(\alpha, \alpha)\), the network is trained on

    $$\hat y_i = f\bigl(\lambda_i h_i + (1 - \lambda_i) h_{\pi(i)}\bigr),
      \qquad y'_i = \lambda_i y_i + (1 - \lambda_i) y_{\pi(i)}$$

    Targets and sample weights are blended as in `MixUp`, inputs stay. Both
    passes of SAM have the same draw. Evaluation and prediction run the model
    as it is, and so do saved files: in `keras_dlkit.attach` a second graph is
    made over the very same layers, which training runs. Layers normalise over
    rows that are blended from that point on.

    The paper draws one of several layers for each batch. That is

    ```python
    import keras_dlkit as dlkit

    dlkit.layers.RandomChoice(
        [
            dlkit.layers.MixUp(2.0, num_classes=10),
            dlkit.layers.ManifoldMixUp(at="block1", num_classes=10),
            dlkit.layers.ManifoldMixUp(at="block2", num_classes=10),
        ]
    )
    ```

    Args:
        alpha: Float, at least 0. 0 blends nothing. Defaults to `2.0`, as in
            the paper.
        at: String. The name of a layer of a Sequential or Functional model,
            called once, whose output is blended; of one in a nested model by
            its path, as `"backbone/block3"`; or, in any model, the name of a
            `keras_dlkit.layers.MixPoint`.
        num_classes: As in `MixUp`.
        per_sample: Boolean. One \(\lambda\) a sample, or one a batch, as in
            the paper.
        probability: Float in `[0, 1]`. The chance that a sample (a batch, with
            `per_sample=False`) is blended at all.
        label_smoothing: Float in `[0, 1]`. As in `MixUp`.
        multi_label: Boolean, or one an output. As in `MixUp`.
        dominant_metrics: Boolean. As in `MixUp`.
        active_epochs: `None`, or `(start, end)`, the half-open range of epochs
            in which samples are blended and labels smoothed.
        seed: Integer, or `None` for a random one.
        name: String. The name of the layer.

    State: layer weights, the random seed (and the epoch); not trainable.
    Runs: in the train step of `keras_dlkit.attach`: targets once a batch,
        hidden values in each forward pass. Nowhere else.
    Cost: one gather and one blend of the hidden values in each pass.

    Raises:
        TypeError, ValueError: As `MixUp`; in `attach`, for a layer that is not
            there or that is called more than once, and for a model with a
            `call` of its own and no `MixPoint`; in `compile`, for an optimizer
            with `micro_batches`, which would tear pairs apart; and when called
            outside of `attach`.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    net = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "relu", name="hidden"),
            keras.layers.Dense(3),
        ]
    )
    part = dlkit.layers.ManifoldMixUp(at="hidden", num_classes=3)
    model = dlkit.attach(net, part)
    ```

    References:
        - [Verma et al., 2019](https://arxiv.org/abs/1806.05236)
    """

    def __init__(
        self,
        alpha: float = 2.0,
        *,
        at: str,
        num_classes: Any = None,
        per_sample: bool = True,
        probability: float = 1.0,
        label_smoothing: float = 0.0,
        multi_label: Any = False,
        dominant_metrics: bool = False,
        active_epochs: tuple[int, int] | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(
            alpha,
            num_classes=num_classes,
            per_sample=per_sample,
            probability=probability,
            label_smoothing=label_smoothing,
            multi_label=multi_label,
            dominant_metrics=dominant_metrics,
            active_epochs=active_epochs,
            seed=seed,
            name=name,
        )
        if not isinstance(at, str) or not at:
            raise TypeError(
                "`at` must be the name of a layer, or of one in a nested model "
                f"as 'backbone/block3'. Received: at={at!r}"
            )
        self.at = at

    @property
    def mixes_at(self):
        return [self.at] if self._mixes else []

    def hidden_draws(self, draw):
        return [] if draw is None else [draw]

    def prepare(self, x, y, sample_weight):
        return x, *super().prepare(None, y, sample_weight)[1:]

    def mix_inputs(self, x, mixture):
        return x

    def get_config(self):
        config = super().get_config()
        config.pop("inputs")
        return {**config, "at": self.at}
