"""An optimizer around any other that holds pruned weights at zero."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_dlkit import _host
from keras_dlkit import _prunable
from keras_dlkit import _selection
from keras_dlkit._export import export
from keras_dlkit._train_step import masking
from keras_dlkit.optimizers import _slots
from keras_dlkit.optimizers.attached_optimizer import AttachedOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import chain
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper
from keras_dlkit.optimizers.wrapper_optimizer import innermost


@export
class Masked(WrapperOptimizer):
    r"""Holds pruned weights at exactly zero, around any optimizer.

    With a mask \(m\) of zeros and ones for each kernel, the inner optimizer
    gets the gradient \(m \odot g\), and with \(w = m \odot w\) and slots at
    their initial value where \(m = 0\) all stays so: after every step, in the
    middle of an epoch and in every checkpoint, momentum, weight decay,
    averages and accumulation included. The masks of a new optimizer are ones,
    which changes nothing, bit for bit; `callbacks.LotteryTicket` and
    `callbacks.MagnitudePruning` set them, or your own code by `set_masks`.

    Optimizers known to change each entry by itself need no more. After those
    that couple entries (`Muon`), those that are not known, and for weights
    with a constraint, the weights and slots are masked again.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`, or the name of one.
        include: `None` (every kernel and embedding), a regular expression
            searched in `variable.path`, to take these among the kernels, or a
            function of a variable to bool, which may take any weight.
        exclude: `None`, or the same, for what is left out.
        name: String. The name of the optimizer.

    Kernels are trainable weights of two or more dimensions that are not
    biases or scales by their name (`bias`, `gamma`, `beta`, `alpha`, `scale`),
    nor LoRA's factors. Inside and around `SAM` and its kin, pruned weights
    are not moved, and count in no norm.

    State: optimizer variables, a `uint8` mask for each kernel.
    Runs: in `apply`, once a step.
    Cost: one product a kernel; one byte a weight. On PyTorch the gradients
        given to `apply` are masked in place. There, on a CPU, second moments
        of Adam and its kin that are zero hold \(10^{-34}\) while the step is
        made, for the square root of a zero takes twenty times as long; those
        below twice that count as zero.

    Raises:
        TypeError, ValueError: At construction, for what is no optimizer or no
            pattern; in `build`, if `exclude` finds none of the weights, or no
            weight is left to prune.

    Example:

    ```python
    import keras
    import numpy as np
    import keras_dlkit as dlkit

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    optimizer = dlkit.optimizers.Masked(keras.optimizers.Adam())
    net.compile(optimizer, "mse")
    optimizer.build(net.trainable_variables)
    optimizer.set_masks({net.layers[0].kernel.path: np.eye(4, 3)})
    net.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    assert (net.layers[0].kernel.numpy()[1:, 0] == 0).all()
    ```
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        *,
        include: str | Callable[[keras.Variable], bool] | None = None,
        exclude: str | Callable[[keras.Variable], bool] | None = None,
        name: str | None = None,
    ):
        super().__init__(inner_optimizer, name=name)
        if find_wrapper(self.inner_optimizer, Masked) is not None:
            raise ValueError(
                "Masks of two `Masked` would not know of each other. Received:"
                " an `inner_optimizer` with a `Masked` in it. Use that one."
            )
        _selection.check_patterns(include, exclude, functions=True)
        self.include, self.exclude = include, exclude
        # Past `__setattr__`, which tracks: here, and in `build`.
        self.__dict__.update(_passengers={}, _luggage={})
        method = find_wrapper(self.inner_optimizer, AttachedOptimizer)
        if method is not None:
            method.mask_by(self.mask)

    def build(self, variables):
        paths = [v.path for v in variables]
        _selection.check_patterns(
            self.include, self.exclude, paths, functions=True
        )
        chosen = _prunable.select(variables, self.include, self.exclude)
        super().build(variables)
        self.add_slots(chosen, "mask", dtype="uint8", initializer="ones")
        again = [
            (v, _slots.of(innermost(self), v))
            for v in chosen
            if v.constraint is not None
            or not _slots.is_elementwise(innermost(self), v)
        ]
        roots = [
            slot
            for v in chosen
            for slot in _slots.under_root(innermost(self), v)
        ]
        vars(self).update(
            _masked_variables=chosen, _masks_again=again, _roots=roots
        )

    # In the step.

    def mask(self, tensors: list, variables: list | None = None) -> list:
        """The tensors, an entry a weight, with zeros where it is pruned."""
        if variables is None:
            variables = self._trainable_variables
        return [
            self._masked(t, v) if t is not None else None
            for t, v in zip(tensors, variables)
        ]

    def _masked(self, tensor, variable):
        mask = self._slots.get(id(variable))
        if mask is None:
            return tensor
        tensor = ops.convert_to_tensor(tensor)
        return tensor * ops.cast(ops.convert_to_tensor(mask), tensor.dtype)

    def transform(self, gradients):
        return self.mask(gradients)

    def apply(self, grads, trainable_variables=None):
        self._build_once(grads, trainable_variables)
        # In their order, which may not be that of `build`.
        variables = trainable_variables or self._trainable_variables
        pairs = zip(masking.owned(grads), variables)
        grads = [self._masked_gradient(*pair) for pair in pairs]
        masking.lift(self._roots)
        self.inner_optimizer.apply(grads, trainable_variables)
        masking.lower(self._roots)
        self._restore(self._masks_again)

    def _masked_gradient(self, gradient, variable):
        mask = self.slot_of(variable)
        if gradient is None or mask is None:
            return gradient
        return masking.masked_gradient(gradient, mask)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        trainable_variables, states = super().stateless_apply(
            optimizer_variables, grads, trainable_variables
        )
        variables = [*self._trainable_variables, *self.variables]
        values = dict(zip(map(id, variables), [*trainable_variables, *states]))
        mapping = list(zip(self.variables, optimizer_variables))
        with keras.StatelessScope(state_mapping=mapping):
            for variable, targets in self._masks_again:
                factors = masking.factors(self._slots[id(variable)])
                for target, begin in targets:
                    values[id(target)] = masking.restored(
                        values[id(target)], factors, begin
                    )
        values = [values[id(v)] for v in variables]
        count = len(trainable_variables)
        return values[:count], values[count:]

    def _restore(self, groups):
        """Puts back what a weight and its slots begin with, where pruned."""
        for variable, targets in groups:
            factors = masking.factors(self._slots[id(variable)])
            for target, begin in targets:
                value = ops.convert_to_tensor(target)
                target.assign(masking.restored(value, factors, begin))

    # Between steps.

    @property
    def masked_variables(self) -> list[keras.Variable]:
        """The weights that have a mask, in the order of the model."""
        return list(self._masked_variables)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks as NumPy arrays, by the path of the weight."""
        return {
            path: np.array(_host.view(self._slots[id(v)]))
            for path, v in self._by_path().items()
        }

    def set_masks(self, masks: Mapping[str, np.ndarray]) -> None:
        """Sets masks, prunes the weights by them, and resets their slots.

        A weight that lives again starts from zero. Call it between steps; in
        the batch hooks of a callback, on JAX, after `self.model` was used.

        Args:
            masks: Dictionary from `variable.path` to arrays of 0 and 1, or of
                bool. Weights that are not named keep their masks.
        """
        by_path = self._by_path()
        for path, mask in masks.items():
            variable = by_path.get(path)
            if variable is None:
                raise ValueError(
                    "`masks` must be named by the paths of weights that are "
                    f"masked, {list(by_path)}. Received: {path!r}"
                )
            self._slots[id(variable)].assign(_checked(path, mask, variable))
        self.prune()

    def prune(self) -> None:
        """Sets what is masked to zero, and its slots to where they began."""
        self._restore(
            (v, _slots.of_all(self._slotted(), v))
            for v in self._masked_variables
            if not _host.view(self._slots[id(v)]).all()
        )

    def _slotted(self):
        return [o for o in chain(self) if o is not self]

    def _by_path(self):
        if not self.built:
            raise ValueError(
                "Masks are made when the optimizer is built. Call "
                "`optimizer.build(model.trainable_variables)` first. "
                f"Received: {self.name!r}, which is not built"
            )
        return _prunable.by_path(self._masked_variables)

    # Saving. What trains in rounds lets its state travel along.

    def carry(self, name: str, passenger: Any) -> None:
        """Saves and loads `passenger` with the masks, by `get` and `set`.

        Args:
            name: String. Its name in the file.
            passenger: Object with `get_state()`, which returns a dictionary
                of NumPy arrays, and `set_state(arrays)`; `None` ends it. One
                that takes its place gets its `waiting`: what it was given and
                has not begun with.
        """
        waiting = getattr(self._passengers.get(name), "waiting", None)
        luggage = self._luggage.pop(name, waiting)
        self._passengers[name] = passenger
        if luggage and passenger is not None:
            passenger.set_state(luggage)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        luggage = dict(self._luggage)
        for name, passenger in self._passengers.items():
            if passenger is not None:
                luggage[name] = passenger.get_state()
        for name, arrays in luggage.items():
            for key, array in arrays.items():
                store[f"{name}:{key}"] = array

    def load_own_variables(self, store):
        masks, luggage = {}, {}
        for key in store.keys():
            name, separator, rest = key.partition(":")
            if separator:
                luggage.setdefault(name, {})[rest] = np.asarray(store[key])
            else:
                masks[key] = store[key]
        super().load_own_variables(masks)
        for name, arrays in luggage.items():
            if self._passengers.get(name) is not None:
                self._passengers[name].set_state(arrays)
            else:
                self._luggage[name] = arrays

    def get_config(self):
        return {
            **super().get_config(),
            "include": self.include,
            "exclude": self.exclude,
        }


def _checked(path, mask, variable):
    mask = _host.view(mask)
    if mask.shape != tuple(variable.shape):
        raise ValueError(
            f"The mask of {path!r} must have the shape of the weight, "
            f"{tuple(variable.shape)}. Received: {mask.shape}"
        )
    if not (mask == (mask != 0)).all():
        raise ValueError(
            f"The mask of {path!r} must hold zeros and ones. Received: "
            f"{np.unique(mask)[:5]}, ..."
        )
    return mask.astype("uint8")  # a copy: backends may keep what they get
