"""The base of optimizers that only the train step of `attach` can serve."""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable

import keras

from keras_dlkit import _checks
from keras_dlkit._train_step.asserts import is_traced
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer
from keras_dlkit.optimizers.wrapper_optimizer import chain
from keras_dlkit.optimizers.wrapper_optimizer import find_wrapper


class AttachedOptimizer(WrapperOptimizer):
    """Base class: gradients that are taken at points beside the weights.

    What the train step asks of it, in this order: `lookahead`, where to take
    the first gradient; `takes_second`, whether to take another; `coast`, what
    becomes of one alone; `remember`, what to keep of them. Then the gradients
    are applied while `attached` is open. A plain `fit` does not ask, and is
    refused.

    Gradients are lists with an entry a trainable weight, `None` where there is
    none; they are not scaled and, but for micro-batches, those of the whole
    batch.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`, or the name of one.
        variables: `None` (every trainable weight), a regular expression
            searched in `variable.path`, or a function of a variable to bool.
            Only these weights are moved, and only they count in the norm.
        start_step: Integer, at least 0. Updates up to this one are plain.
        name: String. The name of the optimizer.
    """

    micro_batches = 1
    # Whether all steps take a second gradient, or none; `None` where `ascends`
    # has to be asked.
    takes_second = False

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        *,
        variables: str | Callable[[keras.Variable], bool] | None = None,
        start_step: int = 0,
        name: str | None = None,
    ):
        super().__init__(inner_optimizer, name=name)
        other = find_wrapper(self.inner_optimizer, AttachedOptimizer)
        if other is not None:
            raise ValueError(
                f"{type(self).__name__} decides where the gradients of a step "
                "are taken, and only one optimizer can. Received: an "
                f"`inner_optimizer` with {type(other)} in it. Wrap another "
                "optimizer."
            )
        self._selection = variables
        self._selects = _predicate(variables)
        self._left_out: set[int] = set()
        self.start_step = _checks.check_count(
            "start_step", start_step, at_least=0
        )
        self._open = 0
        self._is_claimed = False
        self._handed = None
        # Of a `Masked` outside of this one.
        self._outer_mask = None

    def __setattr__(self, name, value):
        # A compiled step would go on with the old value, and say nothing.
        if name in _settings(type(self)) and vars(self).get("built"):
            kind = type(self).__name__
            raise AttributeError(
                f"`{name}` of {kind} is a part of the compiled step, and "
                f"stays once training began. Received: {name}={value!r}. For "
                "a `rho` that changes, pass a `keras.optimizers.schedules."
                "LearningRateSchedule`; for another setting compile anew: "
                f"model.compile(optimizer={kind}(optimizer.inner_optimizer, "
                f"{name}=...), ...)"
            )
        super().__setattr__(name, value)

    # What the train step calls.

    @property
    def is_linear(self) -> bool:
        """Whether it passes on sums of gradients as the sums they are."""
        return True

    @property
    def is_plain(self):
        """True where the steps are those of the inner optimizer."""
        return False

    def lookahead(self, weights, variables):
        """What to add to the weights for the first gradient, or `None`."""
        del weights, variables

    def coast(self, clean, variables):
        """The gradients to apply on a step without a second one."""
        del variables
        return clean

    def remember(self, clean, ascent, variables):
        """What `learn` gets of this step, once the update is made.

        Of micro-batches it gets the mean.

        Args:
            clean: The gradients at the weights.
            ascent: Those at the moved point; `None` on a step without.
            variables: List of the `keras.Variable`s.

        Returns:
            List with an entry a weight, or an empty list.
        """
        del clean, ascent, variables
        return []

    @contextlib.contextmanager
    def attached(self, memory=(), variables=()):
        """Open while the train step applies the gradients.

        Args:
            memory: List of tensors that `learn` gets if the update is made,
                with an entry a weight; or empty.
            variables: List of the `keras.Variable`s of these weights.
        """
        # A counter, and one memory: MirroredStrategy runs its replicas in
        # interleaved threads, whose memories are equal.
        self._open += 1
        if memory:
            self._handed = lambda: self.learn(memory, variables)
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._handed = None

    def learn(self, memory, variables):
        """Writes the state of the method; a skipped update does not."""

    def apply(self, grads, trainable_variables=None):
        self._refuse_plain_fit()  # before a step that fails makes slots
        super().apply(grads, trainable_variables)

    def transform(self, gradients):
        self._refuse_plain_fit()
        if self._handed:
            self._handed()
        return gradients

    def _refuse_plain_fit(self):
        if not self._open:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} needs gradients at points that a plain Keras `fit` "
                "does not visit. Attach the model to train it:\n"
                "    model = keras_dlkit.attach(model)\n"
                f"    model.compile(optimizer={name}(...), ...)\n"
                "    model.fit(...)\n"
                "In a loop of your own, use `keras_dlkit.ops`."
            )

    def mask_by(self, mask):
        """Has an optimizer outside say where weights are pruned."""
        self._outer_mask = mask

    def masked(self, tensors, variables):
        """The tensors, an entry a weight, with zeros where it is pruned."""
        if self._outer_mask is not None:
            return self._outer_mask(tensors, variables)
        for optimizer in chain(self.inner_optimizer):
            if isinstance(optimizer, WrapperOptimizer):
                tensors = optimizer.mask(tensors, variables)
        return tensors

    def selected(self, tensors, variables):
        """The tensors of the selected variables, `None` for the others."""
        return [
            t if self._moves(v) else None for t, v in zip(tensors, variables)
        ]

    def leave_out(self, variables):
        """Says what is not moved as long as `variables` does not ask for it.

        These are the weights that no network has, as those of task weightings.
        """
        self._left_out |= {id(v) for v in variables}

    def _moves(self, variable):
        if self._selection is None:
            return id(variable) not in self._left_out
        return self._selects(variable)

    def claim(self):
        """Says that an attached model trains by it."""
        self._is_claimed = True

    def build(self, variables):
        if is_traced() and not self._is_claimed:
            self._refuse_plain_fit()
        _refuse_overwritten(self, variables)
        chosen = any(self._selects(v) for v in variables)
        if self._selection is not None and not chosen:
            raise ValueError(
                "`variables` must match at least one trainable weight. "
                f"Received: variables={self._selection!r}, which matches none "
                f"of {[v.path for v in variables]}"
            )
        super().build(variables)

    def get_config(self):
        return {
            **super().get_config(),
            "variables": self._selection,
            "start_step": self.start_step,
        }


@functools.cache
def _settings(kind):
    """The arguments of its constructor, which its step is made of."""
    own = kind.__mro__[: kind.__mro__.index(WrapperOptimizer)]
    names = (inspect.signature(base.__init__).parameters for base in own)
    return frozenset().union(*names) - {"self", "name"}


def _refuse_overwritten(optimizer, variables):
    """Raises for weights whose gradient is no gradient."""
    paths = [v.path for v in variables if v.overwrite_with_gradient]
    if paths:
        raise ValueError(
            f"{type(optimizer).__name__} follows gradients, and those of the "
            "scales of a float8 layer are their next values. Received: "
            f"{paths[:20]}. Train with a mixed policy (`mixed_bfloat16`), or "
            "use an optimizer that takes one gradient."
        )


def _predicate(selection):
    if selection is None:
        return lambda variable: True
    if callable(selection):
        return selection
    try:
        pattern = re.compile(selection)
    except (re.error, TypeError) as error:
        raise ValueError(
            "`variables` must be None, a regular expression or a function of "
            f"a variable. Received: variables={selection!r}"
        ) from error
    return lambda variable: pattern.search(variable.path) is not None
