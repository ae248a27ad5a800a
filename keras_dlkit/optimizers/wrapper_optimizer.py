"""The base of all optimizers that wrap another one."""

from typing import Any

import keras
from keras import ops

from keras_dlkit import _keras

# What a wrapper answers, and sets, as the optimizer inside of it.
FORWARDED = (
    "learning_rate",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
    "optimizers",  # of `MultiOptimizer`: callbacks set the rate of each
    "_model_variables_moving_average",  # read by `SwapEMAWeights`
)


def chain(optimizer):
    """Yields `optimizer` and the optimizers inside it, from the outside."""
    while optimizer is not None:
        yield optimizer
        optimizer = vars(optimizer).get("inner_optimizer")


def find_wrapper(optimizer, kind):
    """The outermost `kind` in the nest of wrappers, or `None`."""
    return next((o for o in chain(optimizer) if isinstance(o, kind)), None)


def innermost(optimizer):
    """The optimizer that no wrapper is: the one that updates weights."""
    *_, last = chain(optimizer)
    return last


def _forwarded(name):
    def get(self):
        if "inner_optimizer" not in vars(self):
            raise AttributeError(name)
        return getattr(innermost(self), name)

    def set_(self, value):
        # `Optimizer.__init__` sets defaults before there is an inner one.
        if "inner_optimizer" in vars(self):
            setattr(innermost(self), name, value)

    return property(get, set_)


class WrapperOptimizer(keras.optimizers.Optimizer):
    """Base class of optimizers that change what another optimizer does.

    All that Keras and its callbacks ask of an optimizer (`learning_rate` to
    read and set, `iterations`, averages, accumulation, clipping, weight decay
    and its exclusions, loss scaling) is the inner optimizer's. Wrappers nest
    in any order, inside and outside of `keras.optimizers.LossScaleOptimizer`.

    A subclass makes its own variables in `build`, with `add_variable`, and
    changes gradients in `transform`.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`, or a name that
            `keras.optimizers.get` knows.
        name: String. The name of the optimizer.

    `transform` gets the gradients as they reach `apply`: times the loss
    scale, where a loss scaler is further inside.

    State: optimizer variables, those that `build` adds and the inner ones.
    Runs: in `apply`, once a step.
    Cost: none of its own.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    @keras.saving.register_keras_serializable()
    class Signed(dlkit.optimizers.WrapperOptimizer):
        def transform(self, gradients):
            return [None if g is None else keras.ops.sign(g) for g in gradients]

    Signed(keras.optimizers.SGD(0.1))
    ```
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        *,
        name: str | None = None,
    ):
        super().__init__(learning_rate=0.0, name=name)
        # `Optimizer` made counters of its own; the inner ones count.
        self._unused = super().variables
        self.inner_optimizer = self._get_optimizer(inner_optimizer)

    def _get_optimizer(self, inner_optimizer):
        try:
            optimizer = keras.optimizers.get(inner_optimizer)
        except ValueError:
            optimizer = None
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            name = type(self).__name__
            raise TypeError(
                f"{name} wraps an optimizer: `inner_optimizer` must be a "
                "`keras.optimizers.Optimizer` or the name of one, as in "
                f"`{name}(keras.optimizers.SGD(0.1))`. "
                f"Received: inner_optimizer={inner_optimizer!r} "
                f"of type {type(inner_optimizer)}"
            )
        return optimizer

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @iterations.setter
    def iterations(self, variable):
        self.inner_optimizer.iterations = variable

    @property
    def own_variables(self) -> list:
        """The variables of this wrapper, without those of the inner one."""
        unused = {id(v) for v in self._unused}
        return [v for v in super().variables if id(v) not in unused]

    @property
    def variables(self):
        return self.own_variables + self.inner_optimizer.variables

    def add_slots(
        self,
        variables: list,
        name: str,
        *,
        dtype: Any = None,
        initializer: Any = "zeros",
    ) -> None:
        """Makes an optimizer variable for each weight, for `slots`.

        Args:
            variables: List of `keras.Variable`s; `None` entries get none.
            name: String. What it is, as part of its name.
            dtype: String; that of the weight, if `None`.
            initializer: A `keras.Initializer`, or the name of one.
        """
        layout = None
        distribution = keras.distribution.distribution()
        self._slots = {}
        for v in variables:
            if v is None:
                continue
            if distribution is not None:
                layout = distribution.get_variable_layout(v)
            self._slots[id(v)] = self.add_variable(
                shape=v.shape,
                dtype=dtype or v.dtype,
                initializer=initializer,
                aggregation="only_first_replica",
                layout=layout,
                name=f"{v.path.replace('/', '_')}_{name}",
            )

    def slot_of(self, variable: keras.Variable) -> keras.Variable | None:
        """The slot of the weight, or `None`."""
        return vars(self).get("_slots", {}).get(id(variable))

    def slots(self, tensors: list, variables: list) -> list:
        """The slots of the weights, `None` where `tensors` has `None`."""
        return [
            None if t is None else self._slots[id(v)]
            for t, v in zip(tensors, variables)
        ]

    def slot_values(self, tensors: list, variables: list) -> list:
        """`slots`, as tensors."""
        return [
            None if slot is None else ops.convert_to_tensor(slot)
            for slot in self.slots(tensors, variables)
        ]

    def build(self, variables):
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        _keras.adopt_variables(self, variables)

    def transform(self, gradients: list) -> list:
        """What is passed on to the inner optimizer instead of `gradients`."""
        return gradients

    def mask(self, tensors: list, variables: list | None = None) -> list:
        """The tensors, an entry a weight, with zeros where it is pruned.

        Here nothing is; `Masked` says more.
        """
        del variables
        return tensors

    def apply(self, grads, trainable_variables=None):
        self._build_once(grads, trainable_variables)
        self.inner_optimizer.apply(self.transform(grads), trainable_variables)

    def _build_once(self, grads, trainable_variables):
        if self.built:
            return
        if trainable_variables is None:
            raise ValueError(
                f"{type(self).__name__} must be built before it is given "
                "gradients alone: call `build(variables)`, or pass "
                "`trainable_variables`. Received: "
                f"{len(grads)} gradients."
            )
        self.build(list(trainable_variables))

    def apply_gradients(self, grads_and_vars):
        grads, variables = zip(*grads_and_vars)
        self.apply(grads, variables)
        return self.iterations

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        own = self.own_variables
        inner = list(optimizer_variables[len(own) :])
        mapping = [
            *zip(self.variables, optimizer_variables),
            *zip(self._trainable_variables, trainable_variables),
        ]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            grads = self.transform(grads)
        trainable_variables, inner = self.inner_optimizer.stateless_apply(
            inner, grads, trainable_variables
        )
        own = [ops.convert_to_tensor(scope.get_current_value(v)) for v in own]
        return trainable_variables, own + list(inner)

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        innermost(self).exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list):
        # On JAX it is called after an error, too.
        if _keras.give_state_of_fit_back():
            return
        self.inner_optimizer.finalize_variable_values(var_list)

    # The inner optimizer is saved by itself, as an attribute.

    def save_own_variables(self, store):
        for index, variable in enumerate(self.own_variables):
            store[str(index)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        own = self.own_variables
        if len(store.keys()) != len(own):
            raise ValueError(
                f"The file must hold the {len(own)} variables of "
                f"{type(self).__name__}. Received: {len(store.keys())}. Was "
                "it saved by a model with another optimizer?"
            )
        for index, variable in enumerate(own):
            variable.assign(store[str(index)])

    def get_config(self):
        return {
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        revived = {
            name: keras.saving.deserialize_keras_object(
                value, custom_objects=custom_objects
            )
            if isinstance(value, dict)
            else value
            for name, value in config.items()
        }
        return cls(**revived)


for _name in FORWARDED:
    setattr(WrapperOptimizer, _name, _forwarded(_name))
