"""Tensors that can be changed in place, to pass over memory less often."""


def changes_in_place(tensor):
    """Whether it is one of PyTorch, which runs each operation by itself."""
    return hasattr(tensor, "lerp_")
