"""The page of what is supported says what the tables of the tests say."""

import dataclasses

from tests.conformance import devices
from tests.conformance import modes
from tests.conformance import registry
from tests.conformance import support_matrix
from tests.conformance.registry import Case


def test_the_page_is_that_of_the_tables():
    """`python -m tests.conformance.support_matrix` writes it anew."""
    page = support_matrix.PAGE.read_text(encoding="utf-8")
    assert page == support_matrix.page()


def test_a_row_names_the_parts_and_each_part_is_named():
    rows = {
        name: support_matrix.parts_of(case)
        for name, case in devices.CASES.items()
    }
    assert rows["masked"] == ["optimizers.Masked"]  # a subclass, in the tests
    assert rows["mix_up"] == ["layers.MixUp"]
    assert rows["magnitude_pruning"] == ["callbacks.MagnitudePruning"]
    assert rows["supermask"] == ["layers.Supermask"]
    assert rows["sam_and_hyperspherical_energy"] == [
        "optimizers.SAM",
        "regularizers.HypersphericalEnergy",
    ]
    assert all(rows.values())
    assert rows["sam_mix_up_and_sde_net"] == [
        "layers.MixUp",
        "optimizers.SAM",
        "models.SDENet",
        "layers.SDEBlock",  # and nothing that is not public
    ]
    named = [*sum(support_matrix.OTHERS, ()), *sum(rows.values(), [])]
    assert set(named) == set(support_matrix.public_parts().values())
    # Once it has a row, it needs no excuse.
    assert not set(sum(support_matrix.OTHERS, ())) & set(sum(rows.values(), []))


def test_a_new_case_is_a_new_row(monkeypatch):
    new = dataclasses.replace(registry.BY_NAME["sam"], name="new_sam")
    monkeypatch.setitem(devices.CASES, "new_sam", new)
    assert "\n| new sam: `optimizers.SAM` | tested |" in support_matrix.page()


def test_a_random_part_is_not_said_to_be_equal_under_replicas():
    mirrored = modes.MODES["mirrored"]
    cells = {
        modes.promise(Case("plain"), mirrored),
        modes.promise(Case("draws", draws=True), mirrored),
        modes.promise(Case("cut", micro_batches=2), mirrored),
    }
    assert cells == {modes.EQUAL, modes.RUNS, modes.PER_REPLICA}
