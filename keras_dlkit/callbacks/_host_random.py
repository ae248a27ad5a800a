"""The random states of the process, from which data are shuffled."""

import random
import sys

import numpy as np


def take():
    """Those of `random`, NumPy and, where it is loaded, PyTorch."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy()
    return states


def restore(states):
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in states:
        torch.set_rng_state(torch.from_numpy(states["torch"]))
