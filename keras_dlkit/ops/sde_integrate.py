"""Stochastic differential equations in steps of equal length."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_dlkit._train_step import loop
from keras_dlkit.ops._dtypes import as_dtype
from keras_dlkit.ops._dtypes import wide_dtype
from keras_dlkit.ops._sde_steps import SOLVERS


def sde_integrate(
    drift: Callable,
    diffusion: Any,
    x: Any,
    brownian: Any = None,
    *,
    num_steps: int,
    t_end: float,
    solver: str = "euler",
    unroll: bool = False,
) -> Any:
    r"""Solves \(dx = f(t, x)\,dt + g(t, x)\,dW\) from 0 to `t_end`.

    In the sense of Itô, with \(\Delta = T / N\), \(t_k = k\Delta\) and
    standard normals \(z_k\), Euler-Maruyama is

    $$x_{k+1} = x_k + f(t_k, x_k)\,\Delta + g(t_k, x_k)\sqrt\Delta\,z_k$$

    `"heun"` takes the mean of the drift at both ends of the step: of second
    order where the diffusion is zero, and the same noise as Euler-Maruyama
    otherwise. `"milstein"` adds \((g(t_k, x_k + f\Delta + g\sqrt\Delta) -
    g(t_k, x_k))(z_k^2 - 1)\sqrt\Delta / 2\), and is of strong order 1 where the
    noise of an element depends on that element alone.

    Args:
        drift: Function of a scalar tensor, the time, and of `x`, to a tensor
            of the shape of `x`.
        diffusion: The same, to a tensor that broadcasts to the shape of `x`;
            or such a tensor, for a diffusion that stays; or `None`: the
            ordinary differential equation.
        x: Tensor, the state at time 0. Any shape; floats of 16 bits are
            carried as float32.
        brownian: Tensor of standard normals, `(num_steps, *x.shape)`. Not
            needed without diffusion.
        num_steps: Integer. The number of steps N.
        t_end: Float. The time T at the end.
        solver: `"euler"`, `"heun"` or `"milstein"`.
        unroll: Boolean. A copy of the step in the graph for each step, instead
            of one loop.

    Returns:
        Tensor of the shape of `x`: the state at `t_end`.

    Raises:
        ValueError: For a `brownian` of another shape, and where it is missing.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    # A geometric Brownian motion, 1,000 paths of it.
    end = dlkit.ops.sde_integrate(
        lambda t, x: 0.5 * x,
        lambda t, x: 0.2 * x,
        keras.ops.ones((1000, 1)),
        keras.random.normal((16, 1000, 1)),
        num_steps=16,
        t_end=1.0,
        solver="milstein",
    )
    ```

    References:
        - Kloeden and Platen, Numerical Solution of Stochastic Differential
          Equations, 1992
    """

    def stateless(function):
        return lambda t, x, state: (function(t, x), state)

    if brownian is None and diffusion is not None:
        raise ValueError(
            "A diffusion needs `brownian`, standard normals of shape "
            "(num_steps, *x.shape). Received: brownian=None"
        )
    if not callable(diffusion):
        fixed, diffusion = diffusion, lambda t, x: fixed
    x, _ = integrate(
        stateless(drift),
        stateless(diffusion),
        x,
        brownian,
        (),
        num_steps=num_steps,
        t_end=t_end,
        solver=solver,
        unroll=unroll,
    )
    return x


def integrate(
    drift,
    diffusion,
    x,
    brownian,
    state,
    *,
    num_steps,
    t_end,
    solver,
    unroll,
    first_slope=None,
):
    """`sde_integrate` of functions that carry a state from step to step.

    Args:
        drift, diffusion: Functions of time, `x` and a list of tensors, to a
            value and such a list.
        first_slope: The drift at time 0, where it is known.
        The others: As in `sde_integrate`.
    """
    dtype = wide_dtype(x)
    x = as_dtype(ops.convert_to_tensor(x), dtype)
    dt = t_end / num_steps
    root = math.sqrt(dt)
    times = ops.convert_to_tensor(np.arange(num_steps) * dt, dtype=dtype)
    step = SOLVERS[solver]

    def value(function):
        def call(t, x, state):
            result, state = function(t, x, state)
            if result is not None:
                result = as_dtype(ops.convert_to_tensor(result), dtype)
            return result, state

        return call

    drift, diffusion = value(drift), value(diffusion)
    if brownian is not None:
        brownian = checked_brownian(brownian, (num_steps, *x.shape))

    def body(k, carry, slope=None):
        x, *state = carry
        dw = None
        if brownian is not None:
            dw = as_dtype(brownian[k], dtype) * root
        x, state = step(
            drift, diffusion, times[k], dt, x, dw, list(state), slope
        )
        return [x, *state]

    carry, start = [x, *state], 0
    if first_slope is not None:
        carry, start = body(0, carry, as_dtype(first_slope, dtype)), 1
    run = loop.python_loop if unroll else loop.compiled_loop
    x, *state = run(body, carry, start, num_steps)
    return x, state


def checked_brownian(brownian, shape):
    """`brownian` as a tensor, an error where it is not of that shape."""
    brownian = ops.convert_to_tensor(brownian)
    found, shape = tuple(brownian.shape), tuple(shape)
    if len(found) != len(shape) or any(
        a != b for a, b in zip(found, shape) if None not in (a, b)
    ):
        raise ValueError(
            "`brownian` must hold a standard normal for each step and element "
            f"of the state: {shape}, the steps first. Received: {found}"
        )
    return brownian
