"""What makes a weight worth keeping: the mask criteria of Zhou et al. (2019).

Functions of the weights at the begin and at the end of training. The lowest
go first.
"""

import numpy as np


def magnitude(initial, final):
    del initial
    return np.abs(final)


def small_final(initial, final):
    del initial
    return -np.abs(final)


def large_initial(initial, final):
    del final
    return np.abs(initial)


def small_initial(initial, final):
    del final
    return -np.abs(initial)


def large_initial_large_final(initial, final):
    return np.minimum(np.abs(final), np.abs(initial))


def small_initial_small_final(initial, final):
    return -np.maximum(np.abs(final), np.abs(initial))


def magnitude_increase(initial, final):
    return np.abs(final) - np.abs(initial)


def movement(initial, final):
    return np.abs(final - initial)


def large_final_same_sign(initial, final):
    return np.maximum(0, final * np.sign(initial))


def large_final_different_sign(initial, final):
    return np.maximum(0, -final * np.sign(initial))


CRITERIA = {
    function.__name__: function
    for function in (
        magnitude,
        small_final,
        large_initial,
        small_initial,
        large_initial_large_final,
        small_initial_small_final,
        magnitude_increase,
        movement,
        large_final_same_sign,
        large_final_different_sign,
    )
}
