"""A whole model as a supermask."""

import keras

from keras_dlkit import _keras
from keras_dlkit import _selection
from keras_dlkit._kernels import kernels_of
from keras_dlkit._papers import cites
from keras_dlkit.layers.supermask import Supermask
from keras_dlkit.ops.score_mask import RAMANUJAN
from keras_dlkit.ops.score_mask import check_sparsity
from keras_dlkit.sparsity import _models

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)
RMS = (keras.layers.RMSNormalization,)
SEVERAL_INPUTS = (
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)


@cites(RAMANUJAN)
def supermask(
    model: keras.Model,
    sparsity: float = 0.5,
    *,
    weights: str | None = "signed_constant",
    rescale: bool = True,
    include: str | None = None,
    exclude: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """A copy of a model in which every layer with a kernel is a `Supermask`.

    Its weights are random and stay so: `fit` learns which of them to keep.
    The model that is given is not changed, and its weights are not used but
    for `weights=None`. Layers keep their names.

    Normalizations lose their scale and shift, as in the paper: they would be
    trained otherwise. With `weights=None` they keep them, and train. Other
    weights that are no kernels (of `PReLU`, of layers of your own) stay as
    they are, too, and train.

    Args:
        model: `keras.Model`, built, Sequential or Functional. Models inside of
            it are wrapped as well.
        sparsity: Float in `[0, 1)`. The share of the weights of each kernel
            that are masked. Defaults to `0.5`.
        weights: `"signed_constant"`, `"kaiming_normal"`, or `None` for the
            weights of `model`: see `keras_dlkit.layers.Supermask`.
        rescale: Boolean. See there.
        include: `None` (every layer with a kernel), or a regular expression
            that is searched in the name of the layer.
        exclude: `None`, or a regular expression. A layer that it finds, with a
            kernel or a normalization, stays as it is, with its weights, and
            trains. Say both of a part that was trained before.
        seed: Integer, or `None` for a random one.

    Returns:
        A new model, not compiled.

    Raises:
        TypeError, ValueError: For a model that is subclassed or not built, for
            patterns that leave no layer, and for a layer of several inputs.

    State: none.
    Runs: once.
    Cost: a copy of the model.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = dlkit.sparsity.supermask(net, 0.5, seed=0)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    ```

    References:
        - [Ramanujan et al., 2019](https://arxiv.org/abs/1911.13299)
    """
    model = _models.checked(model, "supermask")
    check_sparsity(sparsity)
    names = [layer.name for layer in _keras.all_layers(model)]
    _selection.check_patterns(include, exclude, names)
    wrapped: list = []

    def is_reset(layer):
        return (
            weights is not None
            and isinstance(layer, NORMALIZATIONS + RMS)
            and _selection.finds(layer.name, None, exclude)
        )

    def change(layer):
        if _selected(layer, include, exclude):
            own = None if seed is None else seed + len(wrapped)
            wrapped.append(layer)
            return Supermask(
                _models.same(layer),
                sparsity=sparsity,
                weights=weights,
                rescale=rescale,
                seed=own,
                name=layer.name,
            )
        if is_reset(layer):
            config = layer.get_config()
            if isinstance(layer, RMS):  # its scale stays, of ones
                config["trainable"] = False
            else:
                config.update(center=False, scale=False)
            return type(layer).from_config(config)
        return _models.same(layer)

    def copy(layer, new):
        if type(layer) is type(new):
            if not is_reset(layer):
                _models.copy_variables(layer, new)
        elif weights is None:
            _models.copy_variables(layer, new.layer)

    copied = _models.clone(model, change, "supermask", copy)
    if not wrapped:
        raise ValueError(
            "`include` and `exclude` must leave at least one layer with a "
            f"kernel. Received: include={include!r}, exclude={exclude!r} for "
            f"the layers {[layer.name for layer in model.layers][:20]}"
        )
    return copied


def _selected(layer, include, exclude):
    if not isinstance(layer, keras.layers.Layer) or isinstance(
        layer, Supermask
    ):
        return False
    if not kernels_of(layer) or not _selection.finds(
        layer.name, include, exclude
    ):
        return False
    if isinstance(layer, SEVERAL_INPUTS):
        raise ValueError(
            "`supermask` wraps layers of one input. Received: the layer "
            f"{layer.name!r} of {type(layer)}. Leave it as it is with "
            f"`exclude={layer.name!r}`."
        )
    return True
