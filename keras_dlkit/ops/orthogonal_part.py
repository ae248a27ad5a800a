"""Gradients of all weights, taken as one vector."""

from keras import ops

from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit._train_step import lists

ZHUANG = Paper(
    "Surrogate Gap Minimization Improves Sharpness-Aware Training",
    "Juntang Zhuang and Boqing Gong and Liangzhe Yuan and Yin Cui "
    "and Hartwig Adam and Nicha Dvornek and Sekhar Tatikonda and "
    "James Duncan and Ting Liu",
    2022,
    "International Conference on Learning Representations",
    arxiv="2203.08065",
)
LIU = Paper(
    "Towards Efficient and Scalable Sharpness-Aware Minimization",
    "Yong Liu and Siqi Mai and Xiangning Chen and Cho-Jui Hsieh and Yang You",
    2022,
    "Conference on Computer Vision and Pattern Recognition",
    arxiv="2203.02714",
)


@cites(ZHUANG, LIU)
def orthogonal_part(vectors: list, along: list) -> list:
    r"""What of `vectors` is orthogonal to `along`, all arrays being one vector.

    $$v - \frac{\langle v, a \rangle}{\lVert a \rVert^2} \, a$$

    With \(g\) the gradient at the weights and \(s\) that at the point of
    SAM, this is the piece that GSAM (\(g\) along \(s\)) and LookSAM (\(s\)
    along \(g\)) are made of.

    Args:
        vectors: List of float tensors of any shapes; `None` entries stay.
        along: List of float tensors of the same shapes, `None` where `vectors`
            has `None`.

    Returns:
        List of tensors with the shapes and dtypes of `vectors`. Inner products
        are summed in float32 (float64 for float64 tensors). Along zeros, and
        where the products are not finite, nothing is taken away.

    Example:

    ```python
    from keras import ops
    import keras_dlkit as dlkit

    (v,) = dlkit.ops.orthogonal_part(
        [ops.array([1.0, 1.0])], [ops.array([2.0, 0.0])]
    )
    # v is [0, 1]
    ```

    References:
        - [Zhuang et al., 2022](https://arxiv.org/abs/2203.08065) (GSAM)
        - [Liu et al., 2022](https://arxiv.org/abs/2203.02714) (LookSAM)
    """
    if len(vectors) != len(along):
        raise ValueError(
            "`vectors` and `along` must be lists of the same length. "
            f"Received: {len(vectors)} and {len(along)} entries"
        )
    square = lists.inner_product(along, along)
    product = lists.inner_product(vectors, along)
    share = product / ops.where(square > 0, square, 1.0)
    share = ops.where(ops.isfinite(share), share, 0.0)
    return lists.sums(vectors, along, -share)
