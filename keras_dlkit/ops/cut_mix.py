"""CutMix as pure functions of tensors."""

from typing import Any

from keras import ops

from keras_dlkit._papers import Paper
from keras_dlkit._papers import cites
from keras_dlkit.ops._boxes import as_row
from keras_dlkit.ops._boxes import boxes_around
from keras_dlkit.ops._boxes import choose

YUN = Paper(
    "CutMix: Regularization Strategy to Train Strong Classifiers "
    "with Localizable Features",
    "Sangdoo Yun and Dongyoon Han and Seong Joon Oh and Sanghyuk "
    "Chun and Junsuk Choe and Youngjoon Yoo",
    2019,
    "International Conference on Computer Vision",
    arxiv="1905.04899",
)


@cites(YUN)
def cut_mix_boxes(lam: Any, centers: Any, *sizes: Any) -> tuple[Any, Any]:
    r"""The boxes that CutMix pastes, and the share that is not covered.

    With \(d\) spatial axes of sizes \(n_k\), a box has the lengths
    \(\operatorname{round}(n_k \, (1 - \lambda)^{1/d})\) about its centre, and
    is cut off at the border. The exact share of the row itself is then
    \(1 - \prod_k \ell_k / n_k\), with \(\ell_k\) what is left of the lengths.

    Args:
        lam: Float tensor of shape `(batch,)`, in `[0, 1]`: the share wanted.
        centers: Integer tensor of shape `(batch, d)`: a place within the
            sizes for each box.
        *sizes: `d` integers, or scalar integer tensors: `height, width` for
            images, one for sequences, three for volumes.

    Returns:
        Tuple of the boxes, int32 of shape `(batch, 2 * d)`, starts then ends,
        half-open (`top, left, bottom, right` for images), and the exact share
        of the row itself, float32 of shape `(batch,)`.

    Example:

    ```python
    from keras import ops
    import keras_dlkit as dlkit

    boxes, lam = dlkit.ops.cut_mix_boxes(
        ops.array([0.75]), ops.array([[0, 4]]), 8, 8
    )
    # wanted 4 x 4 pixels about (0, 4), of which two rows are in the image:
    # boxes is [[0, 2, 2, 6]], lam is [0.875]
    ```

    References:
        - [Yun et al., 2019](https://arxiv.org/abs/1905.04899)
    """
    lam = ops.convert_to_tensor(lam, dtype="float32")
    centers = ops.convert_to_tensor(centers, dtype="int32")
    if not sizes or centers.shape[-1] != len(sizes):
        raise ValueError(
            "`centers` must have a column for each of the sizes. "
            f"Received: centers of shape {tuple(centers.shape)} and "
            f"{len(sizes)} sizes"
        )
    side = ops.expand_dims((1.0 - lam) ** (1.0 / len(sizes)), -1)
    row = as_row(sizes, "float32")
    lengths = ops.cast(ops.round(side * row), "int32")
    boxes = boxes_around(centers, lengths, sizes)
    left = boxes[:, len(sizes) :] - boxes[:, : len(sizes)]
    return boxes, 1.0 - ops.prod(ops.cast(left, "float32") / row, axis=-1)


@cites(YUN)
def cut_mix(images: Any, permutation: Any, boxes: Any, *, axis: int = 1) -> Any:
    """Pastes a box of another row into every row of a batch.

    Nothing is computed with the values: any dtype comes back as it was, and
    what lies outside of the boxes bit for bit.

    Args:
        images: Tensor of shape `(batch, *sizes, ...)`: sequences, images,
            volumes, or the masks of them.
        permutation: Integer tensor of shape `(batch,)`, the partner of each
            row.
        boxes: Integer tensor of shape `(batch, 2 * d)`, or `(1, 2 * d)` for
            one box for all: `d` starts, then `d` ends, half-open, as
            `cut_mix_boxes` gives them.
        axis: Integer. The first of the `d` spatial axes: 2 where the channels
            come first.

    Returns:
        Tensor with the shape and dtype of `images`.

    Example:

    ```python
    from keras import ops
    import keras_dlkit as dlkit

    images = ops.reshape(ops.arange(8), (2, 2, 2))
    dlkit.ops.cut_mix(images, ops.array([1, 0]), ops.array([[0, 0, 1, 2]]))
    # [[[4, 5], [2, 3]], [[0, 1], [6, 7]]]
    ```

    References:
        - [Yun et al., 2019](https://arxiv.org/abs/1905.04899)
    """
    images = ops.convert_to_tensor(images)
    permutation = ops.convert_to_tensor(permutation, dtype="int32")
    boxes = ops.convert_to_tensor(boxes, dtype="int32")
    if len(images.shape) < axis + boxes.shape[-1] // 2:
        raise ValueError(
            f"Boxes of {boxes.shape[-1]} columns need as many as "
            f"{boxes.shape[-1] // 2} spatial axes from axis {axis} on. "
            f"Received: images of shape {tuple(images.shape)}"
        )
    return choose(boxes[:, None], images, images, axis, permutation)
