"""Floating point operations and peak memory of one training step."""

import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Callable

import keras
from _training import jax_state
from _training import training_steps


@dataclasses.dataclass
class Step:
    """Something to time: `run` trains for a number of steps."""

    run: Callable
    flops: Callable = lambda: None


def step_of(model, source, every_steps=1):
    """A `Step` of a model over the batches of a source."""
    count = functools.partial(flops_per_step, model, source, every_steps)
    return Step(training_steps(model, source), functools.cache(count))


def flops_ratio(sides, seconds):
    """The cell of a row of `time_rows`; empty where they are not known."""
    del seconds
    ours, theirs = (side.flops() for side in sides)
    return [f"{ours / theirs:.3f}" if ours and theirs else ""]


def flops_per_step(model, source, every_steps=1):
    """Operations of a step, or `None` where the backend does not tell.

    XLA counts every operation; PyTorch convolutions and matrix products.

    Args:
        model: `keras.Model` that has trained already.
        source: As of `training_steps`.
        every_steps: Integer. The period after which the steps repeat.
    """
    backend = keras.config.backend()
    if backend == "jax":
        return _jax_flops(model, source, every_steps)
    if backend == "torch":
        return _torch_flops(model, source, every_steps)
    return None


def _jax_flops(model, source, every_steps):
    import jax

    # A model that takes both kinds of steps compiles one function for each:
    # by whether it takes the second gradient.
    functions = getattr(model.train_function, "functions", None)
    if functions is None:
        shares = [(jax.jit(model.train_step), 1.0)]
    elif len(functions) == 1:
        shares = [(function, 1.0) for function in functions.values()]
    else:
        shares = [
            (functions[True], 1 / every_steps),
            (functions[False], 1 - 1 / every_steps),
        ]
    batch = next(source(1))
    data = jax_state(model, batch), batch
    return sum(
        share * function.lower(*data).compile().cost_analysis()["flops"]
        for function, share in shares
    )


def _torch_flops(model, source, every_steps):
    from torch.utils.flop_counter import FlopCounterMode

    run = training_steps(model, source)
    with FlopCounterMode(display=False) as counter:
        run(every_steps)
    return counter.get_total_flops() / every_steps


def weight_bytes(model):
    return sum(
        keras.ops.convert_to_numpy(w).nbytes for w in model.trainable_variables
    )


# Peak memory of the step, state and batch included.


def jax_peak_bytes(model, source):
    """What XLA plans for the compiled step."""
    import jax

    batch = next(source(1))
    state = jax_state(model, batch)
    step = jax.jit(model.train_step, donate_argnums=0)
    plan = step.lower(state, batch).compile().memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )


def torch_peak_bytes(model, source):
    """What the allocator of PyTorch hands out, from its profiler's log."""
    import torch
    from torch import profiler

    run = training_steps(model, source)
    run(2)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run(2)
        return torch.cuda.max_memory_allocated()
    # The log holds changes only: gradients that a step leaves behind must not
    # lie there when it begins.
    model.zero_grad()
    batch = next(source(1))
    resident = sum(
        tensor.nbytes
        for tensor in [
            *(v.value for v in [*model.variables, *model.optimizer.variables]),
            *keras.tree.flatten(batch),
        ]
    )
    with profiler.profile(profile_memory=True) as log:
        run(2)
    return resident + _highest_sum(_allocations(log))


def torch_allocated_bytes():
    """What lies on the CUDA device now; 0 where there is none."""
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _allocations(log):
    """Bytes allocated (or, below 0, freed), in the order of time."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "trace.json"
        log.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = [event for event in events if event["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return [event["args"]["Bytes"] for event in events]


def _highest_sum(changes):
    highest = total = 0
    for change in changes:
        total += change
        highest = max(highest, total)
    return highest


def process_bytes(field):
    """`VmRSS` (now) or `VmHWM` (highest so far) of this process, on Linux."""
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith(field))
    return 1024 * int(line.split()[1])
