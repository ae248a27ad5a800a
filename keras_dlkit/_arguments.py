"""The arguments of a call, by name."""

import inspect


def bound(method, model, args, kwargs):
    """Those of a call of a method of `keras.Model`, defaults included."""
    found = inspect.signature(method).bind(model, *args, **kwargs)
    found.apply_defaults()
    found.arguments.pop("self")
    return found.arguments
