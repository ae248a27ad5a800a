"""Argument checks that say what was expected and what was received."""

import math
import numbers


def check_number(name, value, *, at_least=None, at_most=None):
    """Raises unless `value` is a finite real number within the bounds."""
    bounds = " and ".join(
        f"{word} {bound}"
        for word, bound in (("at least", at_least), ("at most", at_most))
        if bound is not None
    )
    expected = f"`{name}` must be a finite number" + (
        f", {bounds}" if bounds else ""
    )
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{expected}. Received: {name}={value!r} of type {type(value)}"
        )
    if (
        not math.isfinite(value)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        raise ValueError(f"{expected}. Received: {name}={value!r}")
    return float(value)


def check_count(name, value, *, at_least):
    """Raises unless `value` is an integer of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{name}` must be an integer. "
            f"Received: {name}={value!r} of type {type(value)}"
        )
    if value < at_least:
        raise ValueError(
            f"`{name}` must be at least {at_least}. Received: {name}={value!r}"
        )
    return int(value)


def check_one_of(name, value, allowed):
    """Raises unless `value` is one of `allowed`."""
    if value not in list(allowed):  # a value may have no hash
        raise ValueError(
            f"`{name}` must be one of {list(allowed)}. "
            f"Received: {name}={value!r}"
        )
    return value


def check_rate(name, value):
    """Raises unless `value` is a number in `[0, 1)`."""
    value = check_number(name, value, at_least=0, at_most=1)
    if value == 1:
        raise ValueError(
            f"`{name}` must be less than 1, or nothing is left. "
            f"Received: {name}={value!r}"
        )
    return value
