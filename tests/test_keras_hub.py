"""KerasHub networks with random weights as hosts of the parts."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit

# KerasHub brings TensorFlow with it: it is not there in an environment of
# another backend alone.
pytest.importorskip("keras_hub")

from keras_hub.layers import AnchorGenerator
from keras_hub.models import ImageClassifier
from keras_hub.models import ResNetBackbone
from keras_hub.models import RetinaNetBackbone
from keras_hub.models import RetinaNetObjectDetector

from tests.running import mostly_slow_to_compile
from tests.running import slow_to_compile


def resnet(shape):
    return ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64],
        stackwise_num_blocks=[1, 1, 1],
        stackwise_num_strides=[1, 2, 2],
        block_type="basic_block",
        image_shape=shape,
    )


def detector():
    keras.utils.set_random_seed(2)
    backbone = RetinaNetBackbone(
        image_encoder=resnet((64, 64, 3)),
        min_level=3,
        max_level=4,
        use_p5=False,
        image_shape=(64, 64, 3),
    )
    anchors = AnchorGenerator(
        bounding_box_format="yxyx",
        min_level=3,
        max_level=4,
        num_scales=1,
        aspect_ratios=[1.0],
        anchor_size=4,
    )
    return RetinaNetObjectDetector(
        backbone=backbone,
        num_classes=3,
        bounding_box_format="yxyx",
        anchor_generator=anchors,
        pre_logits_num_conv_layers=1,
    )


def scenes():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (2, 2, 2))
    boxes = np.concatenate([corners, corners + 32], -1).astype("float32")
    labels = rng.integers(0, 3, (2, 2)).astype("float32")
    images = rng.uniform(size=(2, 64, 64, 3)).astype("float32")
    return images, {"boxes": boxes, "labels": labels}


@pytest.mark.parametrize(
    "compiled", mostly_slow_to_compile(["before", "after"], ["before"])
)
def test_a_detector_keeps_its_own_loss_and_prediction(compiled):
    x, y = scenes()
    stock = detector()
    stock.compile(optimizer=keras.optimizers.SGD(1e-3))
    expected = stock.fit(x, y, shuffle=False, verbose=0).history
    model = detector()
    sgd = dlkit.optimizers.SAM(keras.optimizers.SGD(1e-3), rho=0.0)
    if compiled == "before":
        model.compile(optimizer=sgd)
        attached = dlkit.attach(model)
    else:
        attached = dlkit.attach(model)
        attached.compile(optimizer=sgd, box_loss="auto")
    history = attached.fit(x, y, shuffle=False, verbose=0).history
    assert history == expected
    boxes = attached.predict(x, verbose=0)
    assert boxes.keys() == stock.predict(x, verbose=0).keys()
    assert {"boxes", "confidence", "labels"} <= boxes.keys()


@slow_to_compile
def test_sam_trains_a_detector():
    x, y = scenes()
    attached = dlkit.attach(detector())
    sam = dlkit.optimizers.SAM(keras.optimizers.SGD(1e-3), rho=0.05)
    attached.compile(optimizer=sam)
    losses = attached.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_a_classifier_task_with_sam_and_mix_up(tmp_path):
    task = ImageClassifier(backbone=resnet((32, 32, 3)), num_classes=4)
    model = dlkit.attach(task, dlkit.layers.MixUp(0.2, num_classes=4))
    model.compile(
        optimizer=dlkit.optimizers.SAM("adam"),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(8, 32, 32, 3)).astype("float32")
    model.fit(x, np.arange(8) % 4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        ops.convert_to_numpy(loaded(x)),
        ops.convert_to_numpy(model(x)),
        atol=1e-6,
    )
    assert dlkit.detach(model) is task


def test_a_preprocessor_goes_into_the_data_pipeline():
    task = ImageClassifier(backbone=resnet((32, 32, 3)), num_classes=4)
    task.preprocessor = lambda x: x
    with pytest.warns(UserWarning, match="data pipeline"):
        dlkit.attach(task)
