"""Pruning before training: SNIP, GraSP, SynFlow."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlkit import _checks
from keras_dlkit import _selection
from keras_dlkit._kernels import is_kernel
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit._prunable import by_path
from keras_dlkit.ops import _pruning
from keras_dlkit.ops.score_mask import check_sparsity
from keras_dlkit.sparsity import _models
from keras_dlkit.sparsity import _scores
from keras_dlkit.sparsity._encoding import as_array

SCORES = ("snip", "grasp", "synflow")


LEE = Paper(
    "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
    "Namhoon Lee and Thalaiyasingam Ajanthan and Philip H. S. Torr",
    2019,
    "International Conference on Learning Representations",
    arxiv="1810.02340",
)
WANG = Paper(
    "Picking Winning Tickets Before Training by Preserving Gradient Flow",
    "Chaoqi Wang and Guodong Zhang and Roger Grosse",
    2020,
    "International Conference on Learning Representations",
    arxiv="2002.07376",
)
TANAKA = Paper(
    "Pruning neural networks without any data by iteratively "
    "conserving synaptic flow",
    "Hidenori Tanaka and Daniel Kunin and Daniel L. K. Yamins and "
    "Surya Ganguli",
    2020,
    "Advances in Neural Information Processing Systems",
    arxiv="2006.05467",
)


@cites(LEE, WANG, TANAKA)
def prune_at_init(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    *,
    score: str,
    sparsity: float,
    loss: str | Callable | None = None,
    include: str | None = None,
    exclude: str | None = None,
) -> dict[str, np.ndarray]:
    r"""Sets the weights that matter least to zero, before any training.

    With \(w\) the weights, \(g\) the gradient and \(H\) the Hessian of the
    loss on `(x, y)`, without regularizers, a weight matters by

    - `"snip"`: \(\lvert g \odot w \rvert\), the change of the loss;
    - `"grasp"`: \(w \odot H g\), the flow of gradient that it carries;
    - `"synflow"`: \(v \odot \partial R / \partial v\) at
      \(v = \lvert w \rvert\), with \(R\) the sum over all paths through the
      network of the products of their weights: without data, in 100 rounds.
      Activations are made linear for it, as arguments, layers and `keras.ops`;
      recurrent layers, attention and normalizations by the sample are refused.
      What else is not linear, such as layers of your own, stays as it is.

    Exactly `round(sparsity * n)` of the `n` weights of all kernels together
    are pruned; among equal scores those of the first kernel and the lowest
    flat index go first. Biases and normalizations are never pruned. The
    weights are changed in place; nothing else is, no statistics, no random
    state.

    To train on with the zeros kept, give the masks to an optimizer that holds
    them: zeros by themselves move with the first step.

    Args:
        model: `keras.Model`, built; for `"synflow"` Sequential or Functional.
        x: One batch of inputs, as the model takes them: arrays or tensors,
            lists of numbers, or a structure of these. The papers take some
            ten samples of each class. Not used by `"synflow"`.
        y: The targets, in the same way. Not used by `"synflow"`.
        score: `"snip"`, `"grasp"` or `"synflow"`. GraSP is meant for high
            sparsity; the authors divide logits by 200 for it: do so in `loss`.
        sparsity: Float in `[0, 1)`. The share of the weights that go. 0
            changes nothing.
        loss: `None` for the loss that the model was compiled with, or a loss as
            `compile` takes it, for a model of one output.
        include: `None` (every kernel), or a regular expression that is
            searched in `variable.path`.
        exclude: `None`, or a regular expression. What it finds is left out.

    Returns:
        Dictionary of masks by `variable.path`, as `Masked.set_masks` takes it:
        uint8 arrays, 0 where a weight was pruned.

    Raises:
        TypeError, ValueError: For arguments out of range, a model that is not
            built or has no loss, patterns that leave no kernel, layers that
            `"synflow"` cannot make linear, and scores that are not finite or
            all zero.

    State: none.
    Runs: once, before `fit`.
    Cost: one gradient of the batch (SNIP), two (GraSP), 100 of a single
        sample (SynFlow).

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    x, y = np.random.normal(size=(8, 4)), np.ones((8, 3))
    masks = dlkit.sparsity.prune_at_init(
        model, x, y, score="snip", sparsity=0.5
    )
    optimizer = dlkit.optimizers.Masked("sgd")
    optimizer.build(model.trainable_variables)
    optimizer.set_masks(masks)
    model.compile(optimizer, "mse")
    model.fit(x, y, verbose=0)
    assert (model.layers[0].kernel.numpy() == 0).sum() == 6
    ```

    References:
        - [Lee et al., 2019](https://arxiv.org/abs/1810.02340) (SNIP)
        - [Wang et al., 2020](https://arxiv.org/abs/2002.07376) (GraSP)
        - [Tanaka et al., 2020](https://arxiv.org/abs/2006.05467) (SynFlow)
    """
    model = _models.checked(model, "prune_at_init")
    _checks.check_one_of("score", score, SCORES)
    sparsity = check_sparsity(sparsity)
    paths = [v.path for v in model.variables]
    _selection.check_patterns(include, exclude, paths)
    kernels = [v for v in model.trainable_weights if is_kernel(v)]
    kernels = _selection.select_kernels(kernels, include, exclude)
    if sparsity == 0:
        masks = [np.ones(k.shape, "uint8") for k in kernels]
    elif score == "synflow":
        masks = _in_rounds(model, kernels, sparsity)
    else:
        batch, loss = _batch(model, x, y, score, loss)
        score_of = getattr(_scores, score)
        scores = score_of(model, kernels, batch, loss)
        masks = [np.ones(k.shape, "uint8") for k in kernels]
        masks = _without_lowest(scores, masks, sparsity, score)
    for kernel, mask in zip(kernels, masks):
        if not mask.all():
            values = as_array(kernel)
            kernel.assign(np.where(mask, values, np.zeros_like(values)))
    return dict(zip(by_path(kernels), masks))


def _batch(model, x, y, score, loss):
    if x is None or y is None:
        raise ValueError(
            f"`score={score!r}` needs a batch `x` and its targets `y`. "
            f"Received: x={type(x)}, y={type(y)}"
        )
    if loss is None and not model.compiled:
        raise ValueError(
            f"`score={score!r}` needs a loss: compile the model, or give "
            f"`loss=`. Received: loss=None, and {model.name!r}, which is not "
            "compiled"
        )
    if loss is not None:
        loss = keras.losses.get(loss)
    return (_tensors("x", x), _tensors("y", y)), loss


def _tensors(name, value):
    if isinstance(value, dict):
        return {key: _tensors(name, part) for key, part in value.items()}
    if any(hasattr(leaf, "shape") for leaf in keras.tree.flatten(value)):
        return keras.tree.map_structure(lambda v: _tensor(name, v), value)
    return _tensor(name, value)


def _tensor(name, value):
    array = value if ops.is_tensor(value) else _as_array(value)
    if array is None:
        raise TypeError(
            f"`{name}` must be one batch: an array, a tensor, a list of "
            f"numbers, or a structure of these. Received: {name}={value!r} of "
            f"type {type(value)}"
        )
    floats = "float" in keras.backend.standardize_dtype(array.dtype)
    return ops.convert_to_tensor(
        array, dtype=keras.config.floatx() if floats else None
    )


def _as_array(value):
    """`None` for what holds no numbers, or as many in each row."""
    if not isinstance(value, (int, float, list, tuple)):
        if not hasattr(value, "__array__"):
            return None
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return None if array.dtype.kind in "OSUMm" else array


def _in_rounds(model, kernels, sparsity):
    """SynFlow: the density falls exponentially, and scores are found anew."""
    flow = _scores.SynFlow(model, kernels)
    weights = [as_array(k).astype("float32") for k in kernels]
    masks = [np.ones(w.shape, "uint8") for w in weights]
    for round_ in range(1, _scores.ROUNDS + 1):
        now = [
            ops.convert_to_tensor(w * m, dtype=k.dtype)
            for w, m, k in zip(weights, masks, kernels)
        ]
        share = 1 - (1 - sparsity) ** (round_ / _scores.ROUNDS)
        if round_ == _scores.ROUNDS:
            share = sparsity
        masks = _without_lowest(flow(now), masks, share, "synflow")
    return masks


def _without_lowest(scores, masks, share, name):
    """Masks of which the lowest are gone too, until `share` of all is."""
    scores = [np.asarray(s, "float64") for s in scores]
    least, most = (f(list(map(f, scores))) for f in (np.min, np.max))
    if not np.isfinite([least, most]).all() or least == most == 0:
        raise ValueError(
            f"The scores of `score={name!r}` must be finite, and not all "
            f"zero. Received: scores from {least} to {most}. "
            "Look at the loss, the inputs and the activations."
        )
    return _pruning.prune_to_sparsity(scores, masks, share, "global")
