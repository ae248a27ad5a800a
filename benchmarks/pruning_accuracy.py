"""What is lost when weights go before, during or after training, on MNIST.

KERAS_BACKEND=jax python benchmarks/pruning_accuracy.py

LeNet-300-100 with Adam at 1.2e-3, 20 epochs in batches of 100, all of one
network at 90%, 95% and 98% sparsity, the weights of all layers ranked together.
Gradual pruning rises by the cube of Zhu and Gupta (2017) over the first half of
the steps; SNIP and GraSP see 100 training images. Nothing is tuned. Beside it
the gradual pruning of tensorflow-model-optimization, which ranks each layer
alone, in Keras 2 (on TensorFlow, whatever the backend of the others), with the
same network, schedule and steps.

Each training is written to a file as it ends: a run that was stopped goes on
after the last one.
"""

import argparse
import functools
import pathlib
import time

import keras
import numpy as np
from _runs import Runs
from _runs import mean_and_spread
from _timing import print_head
from _timing import print_row
from _training import machine
from lottery_ticket import load

import keras_dlkit as dlkit

BATCH_SIZE = 100
LEARNING_RATE = 1.2e-3
EVERY_STEPS = 100
SPARSITIES = (0.9, 0.95, 0.98)


def network(seed):
    keras.utils.set_random_seed(seed)
    net = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(300, "relu"),
            keras.layers.Dense(100, "relu"),
            keras.layers.Dense(10),
        ]
    )
    return compiled(net, keras.optimizers.Adam(LEARNING_RATE))


def compiled(net, optimizer):
    net.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return net


def fit(net, data, epochs, callbacks=()):
    x, y = data
    net.fit(x, y, BATCH_SIZE, epochs, callbacks=list(callbacks), verbose=0)


def under_masks(net, masks):
    """The network, whose optimizer holds the weights of these masks at zero."""
    optimizer = dlkit.optimizers.Masked(net.optimizer)
    compiled(net, optimizer)
    optimizer.build(net.trainable_variables)
    optimizer.set_masks(masks)
    return net


# Ways to prune: functions of a network, a sparsity, the data and the number of
# epochs, which train it.


def whole(net, sparsity, data, epochs):
    fit(net, data, epochs)


def gradual(net, sparsity, data, epochs):
    steps = epochs * len(data[0]) // BATCH_SIZE
    schedule = dlkit.schedules.PolynomialSparsity(
        sparsity, begin_step=1, end_step=steps // 2
    )
    pruning = dlkit.callbacks.MagnitudePruning(
        schedule, every_steps=EVERY_STEPS
    )
    fit(net, data, epochs, [pruning])


def after(net, sparsity, data, epochs):
    """The smallest weights of the trained network, and no step after."""
    fit(net, data, epochs)
    kernels = [layer.kernel for layer in net.layers]
    live = [np.ones(k.shape, "uint8") for k in kernels]
    masks = dlkit.ops.magnitude_masks(kernels, live, sparsity)
    for kernel, mask in zip(kernels, masks):
        kernel.assign(kernel * keras.ops.cast(mask, kernel.dtype))


def before(score, net, sparsity, data, epochs):
    x, y = (part[:BATCH_SIZE] for part in data)
    masks = dlkit.sparsity.prune_at_init(
        net, x, y, score=score, sparsity=sparsity
    )
    fit(under_masks(net, masks), data, epochs)


def at_random(net, sparsity, data, epochs):
    kernels = [layer.kernel for layer in net.layers]
    size = sum(k.numpy().size for k in kernels)
    masks = (np.arange(size) >= round(sparsity * size)).astype("uint8")
    np.random.shuffle(masks)  # of the seed of the network
    parts = np.split(masks, np.cumsum([k.numpy().size for k in kernels])[:-1])
    masks = {k.path: m.reshape(k.shape) for k, m in zip(kernels, parts)}
    fit(under_masks(net, masks), data, epochs)


WAYS = {
    "gradual, MagnitudePruning": gradual,
    "after training, no step more": after,
    "before training, SNIP": functools.partial(before, "snip"),
    "before training, GraSP": functools.partial(before, "grasp"),
    "before training, SynFlow": functools.partial(before, "synflow"),
    "before training, at random": at_random,
}
TFMOT = "gradual, tfmot in Keras 2"


def result_of(way, sparsity, seed, data, test, epochs):
    net = network(seed)
    start = time.perf_counter()
    way(net, sparsity, data, epochs)
    seconds = time.perf_counter() - start
    if way is not whole:
        density = dlkit.sparsity.report(net).density
        assert abs(density - (1 - sparsity)) < 1e-3, density
    return {"accuracy": accuracy(net, test), "seconds": seconds}


def accuracy(net, test):
    x, y = test
    scores = net.predict(x, batch_size=1000, verbose=0)
    return 100 * float(np.mean(scores.argmax(axis=1) == y))


def result_of_tfmot(sparsity, seed, data, test, epochs):
    import tensorflow_model_optimization as tfmot
    import tf_keras

    tf_keras.utils.set_random_seed(seed)
    layers, pruning = tf_keras.layers, tfmot.sparsity.keras
    net = tf_keras.Sequential(
        [
            tf_keras.Input((784,)),
            layers.Dense(300, "relu"),
            layers.Dense(100, "relu"),
            layers.Dense(10),
        ]
    )
    steps = epochs * len(data[0]) // BATCH_SIZE
    schedule = pruning.PolynomialDecay(
        0.0, sparsity, 0, steps // 2, frequency=EVERY_STEPS
    )
    net = pruning.prune_low_magnitude(net, schedule)
    net.compile(
        tf_keras.optimizers.Adam(LEARNING_RATE),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    start = time.perf_counter()
    fit(net, data, epochs, [pruning.UpdatePruningStep()])
    seconds = time.perf_counter() - start
    return {"accuracy": accuracy(net, test), "seconds": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/pruning")
    )
    parser.add_argument(
        "--data", type=pathlib.Path, help="folder of MNIST's gzipped IDX files"
    )
    arguments = parser.parse_args()
    data, _, test = load(arguments.data)
    runs = Runs(arguments.out)

    def results(name, make, sparsity):
        return [
            runs.once(
                [name, sparsity, seed, arguments.epochs],
                lambda: make(sparsity, seed, data, test, arguments.epochs),  # noqa: B023
            )
            for seed in range(arguments.seeds)
        ]

    def row(name, make, sparsities=SPARSITIES):
        columns = [results(name, make, s) for s in sparsities]
        cells = [
            mean_and_spread([found["accuracy"] for found in column])
            for column in columns
        ]
        cells += [""] * (len(SPARSITIES) - len(cells))
        seconds = [found["seconds"] for column in columns for found in column]
        return name, *cells, f"{np.median(seconds):.0f}"

    rows = [row("whole", functools.partial(result_of, whole), [0])]
    for name, way in WAYS.items():
        rows.append(row(name, functools.partial(result_of, way)))
    try:
        rows.append(row(TFMOT, result_of_tfmot))
    except ImportError as error:
        rows.append((TFMOT, f"not installed: {error.name}", "", "", ""))
    print(
        f"\n{machine()}; {arguments.epochs} epochs, {arguments.seeds} seeds. "
        "Test accuracy, %, mean and standard deviation; median seconds of a "
        "fit.\n"
    )
    columns = [f"{100 * s:.0f}% zeros" for s in SPARSITIES]
    print_head("pruned", *columns, "seconds")
    for cells in rows:
        print_row(*cells)


if __name__ == "__main__":
    main()
