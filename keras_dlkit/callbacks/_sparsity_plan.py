"""When masks change, and to which sparsity: any schedule as one thing."""

from keras_dlkit import _checks


class SparsityPlan:
    """The updates on which a schedule is followed.

    Every `every_steps` updates, at the step at which it begins, and at the
    step at which it ends, or training does: the final sparsity is reached
    also where the steps between are no multiple.

    Args:
        schedule: Callable, from the number of an update, counted from 1, to a
            sparsity; or to `(should_prune, sparsity)`, as the
            `PruningSchedule` of tensorflow-model-optimization, whose
            `frequency` is then taken for `every_steps`.
        every_steps: Integer, at least 1.
    """

    def __init__(self, schedule, every_steps):
        if not callable(schedule):
            raise TypeError(
                "`schedule` must be a `keras_dlkit.schedules` object, a "
                "function from step to sparsity or a `PruningSchedule`. "
                f"Received: schedule={schedule!r} of type {type(schedule)}"
            )
        self.schedule = schedule
        self.every_steps = _checks.check_count(
            "every_steps", every_steps, at_least=1
        )
        self.begin_step = getattr(schedule, "begin_step", 0)
        self.end_step = getattr(schedule, "end_step", None)
        self.offset = 0
        if hasattr(schedule, "frequency"):
            self.every_steps, self.offset = schedule.frequency, self.begin_step

    def sparsity(self, step):
        """That of the update of this number."""
        if step < self.begin_step:
            return 0.0
        value = self.schedule(step)
        if isinstance(value, tuple):
            _, value = value
        return _checks.check_rate(f"schedule({step})", float(value))

    def due(self, after, up_to, last=None):
        """The last update in `(after, up_to]` at which masks change.

        Args:
            after: Integer. Updates done.
            up_to: Integer. Updates done before there is another chance.
            last: Integer. The last update of all, or `None` if not known.

        Returns:
            Integer, or `None`.
        """
        multiple = up_to - (up_to - self.offset) % self.every_steps
        points = (multiple, max(self.begin_step, 1), self.end_step, last)
        return max(
            (p for p in points if p is not None and after < p <= up_to),
            default=None,
        )

    def check(self, start, last, most=10_000):
        """Raises for a schedule that goes down, or does nothing.

        Args:
            start: Integer. Updates done.
            last: Integer. The last update.
            most: Integer. How many points to look at, of those at which masks
                change.
        """
        first = start + 1 + (self.offset - start - 1) % self.every_steps
        every = self.every_steps
        every *= max(1, (last - start) // (every * most))
        ends = (max(self.begin_step, 1), self.end_step)
        steps = {*range(first, last, every), last}
        steps |= {e for e in ends if e is not None and start < e < last}
        steps = sorted(steps)
        values = [self.sparsity(step) for step in steps]
        for step, a, b in zip(steps[1:], values, values[1:]):
            if b < a - 1e-6:
                raise ValueError(
                    "`schedule` must never go down: what is pruned stays so. "
                    f"Received: a sparsity of {b} at step {step}, after {a}"
                )
        if max(values) <= 0:
            raise ValueError(
                f"`schedule` would prune nothing in this `fit`, which ends at "
                f"step {last}. Received: schedule={self.schedule!r}. Steps are"
                " optimizer updates, batches an epoch times epochs: begin "
                "earlier, or train longer."
            )
        return values[-1]
