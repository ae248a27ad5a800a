"""Every private name of Keras that the package touches, one helper each.

`tests/test_private_keras.py` holds a canary for each: on a Keras where one of
them has moved, that test fails and says which.
"""

import contextlib
import importlib
import inspect
import sys

import keras
from keras import tree
from keras.src.backend.common import masking
from keras.src.trainers import compile_utils

from keras_dlkit._tree import leaves


def compile_arguments(model):
    """The arguments of `model`'s last `compile`, as the objects they were.

    `get_compile_config()` is the public form, but it gives serialized copies:
    the optimizer would lose its state, and a lambda could not come back.
    """
    return dict(model._compile_config.config)


def as_loss(loss, y_true, y_pred):
    """What `compile` takes for a loss, as the `keras.losses.Loss` it makes.

    With the names and the shapes that it allows: "crossentropy" is one of
    three by the targets, and a function gets both of one rank.
    """
    return compile_utils.get_loss(loss, y_true, y_pred)


def loss_name(loss):
    """The name that such a loss has; an error, if it is none."""
    rows = keras.KerasTensor((2, 1))
    return as_loss(loss, rows, rows).name


def loss_tracker(model):
    """The metric that averages the loss of an epoch.

    It has no public name of its own: a model may have other metrics that are
    called `"loss"`.
    """
    return model._loss_tracker


def held_metrics(model):
    """The metrics that a model holds as attributes, beside compiled ones."""
    return list(model._metrics)


def get_mask(tensor):
    """The mask that Keras keeps beside a tensor, or `None`."""
    # Not the attribute: tensors that JAX traces have none.
    return masking.get_keras_mask(tensor)


def set_mask(tensor, mask):
    masking.set_keras_mask(tensor, mask)


def share_compiled_state(source, target):
    """Makes `target` update the loss and metric trackers of `source`.

    For a model with its own `compute_loss` or `compute_metrics`: these use
    the trackers of the model itself.
    """
    target._loss_tracker = source._loss_tracker
    target._compile_loss = source._compile_loss
    target._compile_metrics = source._compile_metrics


def adopt_variables(optimizer, variables):
    """The part of `Optimizer.build` that says which variables it is for.

    The whole of it would make a second set of averages and accumulators
    beside those of the inner optimizer.
    """
    for index, variable in enumerate(variables):
        key = optimizer._var_key(variable)
        optimizer._trainable_variables_indices[key] = index
    # Past `__setattr__`, which would make them variables of the optimizer.
    vars(optimizer)["_trainable_variables"] = list(variables)
    optimizer.built = True


def exclude_from_weight_decay(optimizer, variables):
    """Adds variables to those that the optimizer does not decay.

    The public method forgets what was excluded before, and has no effect on
    the parts of a `MultiOptimizer`.
    """
    for part in [optimizer, *getattr(optimizer, "optimizers", [])]:
        excluded = getattr(part, "_exclude_from_weight_decay", set())
        keys = {part._var_key(variable) for variable in variables}
        if not keys <= excluded:
            part._exclude_from_weight_decay = excluded | keys
            part._exclude_from_weight_decay_cache = {}


def copy_exclusions(source, target):
    """What the user excluded from weight decay, which no config holds.

    Args:
        source, target: Optimizers of the same kind. A `MultiOptimizer` may
            know its parts only when it is built.
    """
    parts = [[o, *getattr(o, "optimizers", [])] for o in (source, target)]
    for old, new in zip(*parts):
        for name in (
            "_exclude_from_weight_decay",
            "_exclude_from_weight_decay_pattern",
        ):
            if hasattr(old, name):
                setattr(new, name, getattr(old, name))
        new._exclude_from_weight_decay_cache = {}


def applies_to(optimizer, variables):
    """Whether a built optimizer was built for all of the variables."""
    known = {id(v) for v in optimizer._trainable_variables}
    return all(id(v) in known for v in variables)


def all_layers(layer):
    """The layer and all layers inside of it, at any depth, each once.

    The public `Model.layers` has those of the first level.
    """
    return layer._flatten_layers()


def is_built_throughout(model):
    """Whether no layer is left that a first call would build."""
    return all(layer.built for layer in all_layers(model))


def set_initial_value(variable, initializer):
    """Gives a fresh variable the value that another initializer would.

    While Keras traces a model that builds itself, its variables have no value
    yet, and an `assign` would be lost with the trace.
    """
    if variable._value is None:
        variable._initializer = initializer
    else:
        variable.assign(initializer(variable.shape, dtype=variable.dtype))


def replace_optimizer(model, optimizer, given=None):
    """Puts another optimizer into a compiled model, and what is saved of it.

    Without the second, a saved model would be compiled with the old one, and
    drop the state of the new one.

    Args:
        model: `keras.Model`, compiled.
        optimizer: The one that trains.
        given: The one that `compile` is to be given after loading; `None` for
            the same.
    """
    model.optimizer = optimizer
    model._compile_config.config["optimizer"] = given or optimizer


def optimizer_of(optimizer, variable):
    """The optimizer that updates the weight: of a `MultiOptimizer`, its part.

    Which weights an optimizer is for has no public name.
    """
    for part in getattr(optimizer, "optimizers", []):
        if any(v is variable for v in part._trainable_variables):
            return part
    return optimizer


def optimizer_slots(optimizer, variable):
    """The optimizer's own variables of the weight's shape, by attribute.

    Keras keeps them in lists with an entry a weight, and those of `Muon`,
    before 3.13, in dicts by path.
    """
    optimizer = optimizer_of(optimizer, variable)
    weights = optimizer._trainable_variables
    index = next((i for i, v in enumerate(weights) if v is variable), None)
    found = []
    for name, slots in vars(optimizer).items():
        if isinstance(slots, dict) and index is not None:
            slots = [slots.get(v.path) for v in weights]
        if (
            index is None
            or name in ("_variables", "_trainable_variables")
            or not isinstance(slots, (list, tuple))
            or len(slots) != len(weights)
        ):
            continue
        slot = slots[index]
        if isinstance(slot, keras.Variable) and slot.shape == variable.shape:
            found.append((name, slot))
    return found


def is_tf_data(data):
    """Whether it is a `tf.data.Dataset`; imports no TensorFlow to know."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(data, tensorflow.data.Dataset)


def tf_data_batch_size(dataset):
    """The batch size of a `tf.data.Dataset`; `None` where it does not say.

    Without a look at its rows: a second iterator would shuffle anew. TensorFlow
    has no public name for it, and Keras finds it in the same way.
    """
    distribute = importlib.import_module(
        "tensorflow.python.data.experimental.ops.distribute"
    )
    shapes = [getattr(t, "shape", None) for t in leaves(dataset.element_spec)]
    if any(shape is None or shape.rank == 0 for shape in shapes):
        return None  # not batched, or of other things than tensors
    size = int(distribute.compute_batch_size(dataset))
    return None if size < 0 else size


def running_fit(callback):
    """The `fit` that runs: its `CallbackList`, and what it was given.

    A callback is told of neither. Both are on the stack while a hook runs.

    Args:
        callback: `keras.callbacks.Callback`, in a hook of the whole training.

    Returns:
        The list, and a dictionary of `x`, `steps_per_epoch` and
        `initial_epoch`; `None` for both where no `fit` of Keras is under way.
    """
    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("callbacks")
        if (
            frame.f_code.co_name == "fit"
            and isinstance(found, keras.callbacks.CallbackList)
            and any(c is callback for c in found.callbacks)
        ):
            names = ("x", "steps_per_epoch", "initial_epoch")
            return found, {name: frame.f_locals[name] for name in names}
        frame = frame.f_back
    return None, None


def call_between_steps(callback_list):
    """Has the hooks at the end of a batch called before the next one.

    Keras decides so by what the callbacks override, but overlooks a callback
    that was given to `fit` alone, and not in a list.
    """
    callback_list._async_train = False


def begin_at_epoch(model, epoch):
    """The epoch that `fit` begins with, set in `on_train_begin`.

    It stays for every `fit` to come: `None` takes it back.
    """
    model._initial_epoch = epoch


def strategy_scope(model):
    """Where variables are made, on TensorFlow under a strategy."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


class BuildsOnRows:
    """Mixed into a model on TensorFlow: built on the rows that one replica has.

    Of several replicas Keras takes the mean, in which class numbers are floats.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        strategy = self.distribute_strategy
        if iterator is not None and strategy.num_replicas_in_sync > 1:
            _, _, batches = next(iter(iterator))
            data_batch = tree.map_structure(
                lambda t: strategy.experimental_local_results(t)[0],
                next(batches),
            )
            iterator = None
        super()._maybe_symbolic_build(iterator, data_batch)


def give_state_back(model, state):
    """Gives variables the values that a step on JAX was given.

    For as long as an epoch lasts, the variables have none.

    Args:
        model: `keras.Model`.
        state: What its train, test or predict function takes first. If a step
            has used it up, nothing is done.
    """
    try:
        if any(value.is_deleted() for values in state for value in values):
            return
    except TypeError:  # a variable made in the step: its value is of the trace
        return
    names = ["trainable", "non_trainable", "metrics"]
    if len(state) == 4:
        names.insert(2, "optimizer")
    model._jax_state = {
        f"{name}_variables": values for name, values in zip(names, state)
    }
    model._jax_state_synced = False
    model.jax_state_sync()
    # An older one, of the last step, must not be synced again.
    model._jax_state = None


def give_state_of_fit_back():
    """The same for the `fit` under way, where its first step has failed.

    An optimizer is told of neither: it is called at the end, whatever came of
    the training, and the rest is on the stack.

    Returns:
        Whether there is such a `fit`.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "fit":
        frame = frame.f_back
    if frame is None:
        return False
    model, state = map(frame.f_locals.get, ("self", "state"))
    if state is None or getattr(model, "_jax_state_synced", True):
        return False
    give_state_back(model, state)
    return True
