"""`kill -9` at random moments of `fit`, with each part."""

import json
import random

import numpy as np
import pytest

from tests.callbacks.killed_fit import CASES
from tests.callbacks.killed_fit import CLOCK
from tests.callbacks.killed_fit import MOMENTS
from tests.conformance.test_contracts import assert_same
from tests.conformance.test_contracts import run_script
from tests.running import slow_to_compile

# All that a part can keep: draws, callbacks, masks, noise.
QUICK = ["random_choice", "lottery_ticket", "sde_block"]
SLOW = [name for name in CASES if name not in QUICK]
# Each in a process that has ten minutes, also on a machine with much to do.
PARTS = 8


def check(names, folder, seed, moments=("train_batch_begin",)):
    output = run_script(
        "tests/callbacks/killed_fit.py", folder, seed, ",".join(moments), *names
    )
    histories = compare(names, folder, output)
    assert all(len(history["val_loss"]) >= 1 for history in histories)


def compare(names, folder, output):
    """Both ends of each are the same; returns the histories."""
    found = []
    for name in names:
        ends = [
            folder / "unbroken" / f"{name}.unbroken",
            folder / f"{name}.resumed",
        ]
        histories = [json.loads(open(f"{e}.json").read()) for e in ends]
        assert histories[0] == histories[1], output
        found.append(histories[0])
        states = [np.load(f"{end}.npz") for end in ends]
        assert_same(*([s[key] for key in s.files] for s in states))
    return found


@slow_to_compile
def test_a_killed_run_ends_as_the_unbroken_one(tmp_path):
    check(QUICK, tmp_path, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_part_killed_at_random(part, tmp_path):
    check(SLOW[part::PARTS], tmp_path, random.randrange(10**6), list(MOMENTS))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_killed_by_the_clock(part, tmp_path):
    """In a step, in validation, between two hooks, in a write."""
    names = ["sam_every_2", "random_choice", "dynamic_weight_average"]
    names += ["lottery_ticket", "magnitude_pruning", "sde_block"]
    check(names[part::2], tmp_path, random.randrange(10**6), [CLOCK])


@pytest.mark.slow
def test_a_lottery_ticket_that_saves_itself_or_is_backed_up(tmp_path):
    orders = ["own", "before", "after"]
    output = run_script("tests/callbacks/killed_ticket.py", tmp_path, *orders)
    for rows in compare(orders, tmp_path, output):
        assert [row["epochs"] for row in rows] == [2, 2, 2]
    assert not list((tmp_path / "own").iterdir())
