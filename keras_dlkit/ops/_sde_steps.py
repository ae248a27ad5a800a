"""The solvers: one step of each, with state carried along.

In all of them `drift(t, x, state)` and `diffusion(t, x, state)` return a value
and the next state, `dw` is the increment of the Brownian motion, and `slope`
is the drift at `(t, x)` if it is known already.
"""

import math


def euler(drift, diffusion, t, dt, x, dw, state, slope=None):
    slope, noise, state = _both(drift, diffusion, t, x, state, slope)
    return _moved(x, slope, dt, noise, dw), state


def heun(drift, diffusion, t, dt, x, dw, state, slope=None):
    slope, noise, state = _both(drift, diffusion, t, x, state, slope)
    there = _moved(x, slope, dt, noise, dw)
    slope_there, state = drift(t + dt, there, state)
    return _moved(x, 0.5 * (slope + slope_there), dt, noise, dw), state


def milstein(drift, diffusion, t, dt, x, dw, state, slope=None):
    slope, noise, state = _both(drift, diffusion, t, x, state, slope)
    there = _moved(x, slope, dt, noise, dw)
    if noise is None:
        return there, state
    root = math.sqrt(dt)
    # A difference in the place of the derivative (Kloeden and Platen, 11.1.3).
    noise_aside, state = diffusion(t, x + slope * dt + noise * root, state)
    correction = (noise_aside - noise) * (dw * dw - dt) / (2 * root)
    return there + correction, state


SOLVERS = {"euler": euler, "heun": heun, "milstein": milstein}


def _both(drift, diffusion, t, x, state, slope):
    if slope is None:
        slope, state = drift(t, x, state)
    noise, state = diffusion(t, x, state)
    return slope, noise, state


def _moved(x, slope, dt, noise, dw):
    x = x + slope * dt
    return x if noise is None else x + noise * dw
