"""`citation`: the papers behind what was used, as BibTeX."""

from collections.abc import Iterator
from typing import Any

import keras

from keras_dlkit._papers import ATTRIBUTE
from keras_dlkit._papers import papers_of

HOLDERS = (
    keras.Layer,
    keras.Loss,
    keras.Regularizer,
    keras.callbacks.Callback,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
)


def citation(*objects: Any) -> str:
    """The papers behind the parts that were used, as BibTeX.

    Args:
        *objects: Parts, as objects, classes or functions, and what holds
            parts: a model (with its layers, regularizers, optimizer and, if
            it is attached, its parts), a wrapped optimizer, a list of
            callbacks. A model does not know the callbacks of its `fit`: give
            them, too. Of an object, the papers are those of what it was set
            to do.

    Returns:
        String, an entry a paper, in the order of the objects; each once.
        Empty where there is nothing to cite.

    Raises:
        TypeError: For what can neither be a part nor hold one.

    State: none.
    Runs: once.
    Cost: none.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = dlkit.attach(net, dlkit.layers.MixUp(0.2, num_classes=3))
    model.compile(dlkit.optimizers.SAM("adam"), "categorical_crossentropy")
    print(dlkit.citation(model))  # MixUp, SAM
    print(dlkit.citation(dlkit.callbacks.LotteryTicket))
    ```
    """
    seen: set[int] = set()
    papers: dict = {}
    for value in objects:
        _check(value)
        for part in _parts(value, seen):
            papers |= {paper.key: paper for paper in papers_of(part)}
    return "\n\n".join(paper.bibtex() for paper in papers.values())


def _check(value):
    if isinstance(value, (list, tuple)):
        for entry in value:
            _check(entry)
    elif not (_holds(value) or _is_public(value)):
        raise TypeError(
            "`citation` takes parts of keras_dlkit, as classes, functions or "
            "objects, and the models, layers, optimizers, regularizers and "
            f"callbacks of Keras. Received: {value!r} of type {type(value)}"
        )


def _is_public(value):
    """Whether it is a class or function; modules are neither."""
    return callable(value) and hasattr(value, "__qualname__")


def _holds(value):
    """Whether it may be a part, or have one inside."""
    return isinstance(value, HOLDERS) or hasattr(type(value), ATTRIBUTE)


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yields `value` and all that it holds, each once."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for entry in value:
            yield from _parts(entry, seen)
    elif id(value) not in seen and (_holds(value) or _is_public(value)):
        seen.add(id(value))
        yield value
        if _holds(value):
            yield from _parts(_inside(value), seen)


def _inside(value):
    inside = list(vars(value).values()) if hasattr(value, "__dict__") else []
    if isinstance(value, keras.callbacks.Callback):
        # It knows the model that it was used with, and is no part of it.
        outside = (keras.Layer, keras.optimizers.Optimizer)
        return [x for x in inside if not isinstance(x, outside)]
    if isinstance(value, keras.Layer):
        # `regularizers.regularize` leaves them there.
        inside += [getattr(v, "regularizer", None) for v in value.weights]
    return inside
