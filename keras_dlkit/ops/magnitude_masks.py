"""Magnitude pruning: which weights are the smallest."""

from collections.abc import Sequence

import numpy as np

from keras_dlkit import _checks
from keras_dlkit import _host
from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.ops import _pruning

HAN = Paper(
    "Learning both Weights and Connections for Efficient Neural Networks",
    "Song Han and Jeff Pool and John Tran and William J. Dally",
    2015,
    "Advances in Neural Information Processing Systems",
    arxiv="1506.02626",
)
FRANKLE = Paper(
    "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
    "Jonathan Frankle and Michael Carbin",
    2019,
    "International Conference on Learning Representations",
    arxiv="1803.03635",
)


@cites(HAN, FRANKLE)
def magnitude_masks(
    weights: Sequence,
    masks: Sequence,
    pruning_rate: float,
    scope: str = "global",
) -> list[np.ndarray]:
    r"""Masks with the smallest of the living weights taken out.

    Of \(n\) weights that live, exactly \(\mathrm{round}(r n)\) more go,
    those of least \(|w|\); a half is rounded to the even number, as Python
    does. Between equal weights the one of the lowest flat index goes first,
    counted through the arrays in their order. What is pruned stays so.

    Args:
        weights: List of arrays or tensors.
        masks: List of arrays of the same shapes: 1 where a weight lives, 0
            where it is pruned.
        pruning_rate: Float in `[0, 1)`. The share \(r\) of the living weights
            that goes; 0 is the identity.
        scope: `"global"` ranks all arrays together, `"layer"` each alone.

    Returns:
        List of NumPy arrays of `uint8`, as a copy.

    Raises:
        ValueError: For arguments out of range, shapes that differ, and
            weights with NaN.

    It runs on the host: a partition there is much faster than a sort on the
    device, and nothing flows back through a mask.

    Example:

    ```python
    import numpy as np
    import keras_dlkit as dlkit

    weights, masks = [np.array([3.0, -1.0, 2.0, 0.5])], [np.ones(4)]
    (mask,) = dlkit.ops.magnitude_masks(weights, masks, pruning_rate=0.5)
    assert mask.tolist() == [1, 0, 1, 0]
    ```

    References:
        - [Han et al., 2015](https://arxiv.org/abs/1506.02626)
        - [Frankle and Carbin, 2019](https://arxiv.org/abs/1803.03635)
    """
    rate = _checks.check_rate("pruning_rate", pruning_rate)
    _checks.check_one_of("scope", scope, _pruning.SCOPES)
    scores = [np.abs(_host.view(w)) for w in weights]
    masks = [_host.view(m) for m in masks]
    if [s.shape for s in scores] != [m.shape for m in masks]:
        raise ValueError(
            "`masks` must have the shapes of `weights`. Received: "
            f"{[m.shape for m in masks]} for {[s.shape for s in scores]}"
        )
    scores = _pruning.as_scores(scores)
    rates = [rate] * len(scores)
    return _pruning.prune_by_rate(scores, masks, rates, scope)
