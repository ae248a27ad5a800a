"""What `include` and `exclude` choose, by regular expressions over paths."""

import re


def check_patterns(include, exclude, paths=None, functions=False):
    """Raises for what is no pattern, and for an `exclude` that finds nothing.

    Args:
        include, exclude: `None`, a regular expression, or a function.
        functions: Whether the caller takes functions of a variable.
        paths: Where they are known: the paths of all weights. One that leaves
            out none of them is a slip of the pen.
    """
    expected = "None or a regular expression"
    if functions:
        expected = "None, a regular expression or a function of a variable"
    for name, value in (("include", include), ("exclude", exclude)):
        if value is None or (functions and callable(value)):
            continue
        try:
            re.search(value, "")
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`{name}` must be {expected}. Received: {name}={value!r}"
            ) from error
    if paths is None or not isinstance(exclude, str):
        return
    if not finds_any(exclude, paths):
        raise ValueError(
            "`exclude` must find something to leave out. Received: "
            f"exclude={exclude!r}, and no such path among the weights: "
            f"{list(paths)[:20]}. Mend it, or leave it out."
        )


def finds_any(pattern, paths):
    """Whether a regular expression finds one of the paths."""
    return any(re.search(pattern, path) for path in paths)


def finds(path, include, exclude):
    """Whether two regular expressions, or `None`, choose a path."""
    return not (
        (include is not None and not re.search(include, path))
        or (exclude is not None and re.search(exclude, path))
    )


def select_kernels(kernels, include, exclude):
    """Those, of things with a `path`, that are chosen, at least one."""
    chosen = [k for k in kernels if finds(k.path, include, exclude)]
    if not chosen:
        raise ValueError(
            "`include` and `exclude` must leave at least one kernel. Received: "
            f"include={include!r}, exclude={exclude!r} for the kernels "
            f"{[k.path for k in kernels][:20]}"
        )
    return chosen
