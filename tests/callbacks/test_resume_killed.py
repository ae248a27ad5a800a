"""`kill -9` at random moments of `fit`, with each part."""

import json
import random

import keras
import numpy as np
import pytest

from tests.callbacks.killed_fit import CALLBACKS
from tests.conformance import networks
from tests.conformance import registry
from tests.conformance.test_contracts import assert_same
from tests.conformance.test_contracts import run_script

# All that a part can keep: draws, callbacks, masks, noise.
QUICK = ["random_choice", "lottery_ticket", "sde_block"]
ALL = [*registry.BY_NAME, *networks.BY_NAME, *CALLBACKS]
# There, two runs that nobody kills differ in their last bits.
UNLIKE = ["sde_net"] if keras.config.backend() == "tensorflow" else []
SLOW = [name for name in ALL if name not in QUICK + UNLIKE]


def check(names, folder, seed):
    output = run_script("tests/callbacks/killed_fit.py", folder, seed, *names)
    for name in names:
        ends = [
            folder / "unbroken" / f"{name}.unbroken",
            folder / f"{name}.resumed",
        ]
        histories = [json.loads(open(f"{e}.json").read()) for e in ends]
        assert histories[0] == histories[1], output
        assert len(histories[0]["val_loss"]) >= 1
        states = [np.load(f"{end}.npz") for end in ends]
        assert_same(*([s[key] for key in s.files] for s in states))


def test_a_killed_run_ends_as_the_unbroken_one(tmp_path):
    check(QUICK, tmp_path, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_part_killed_at_random(part, tmp_path):
    check(SLOW[part::4], tmp_path, seed=random.randrange(10**6))
