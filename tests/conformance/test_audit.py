"""No part calls out, writes where it was not told to, or prints unasked."""

import pytest

from tests.conformance.test_contracts import run_script
from tests.running import slow_to_compile


@pytest.mark.parametrize(
    "which",
    [
        pytest.param("few", marks=slow_to_compile),
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_parts_do_nothing_beside(which, tmp_path):
    for name in ("given", "work", "temporary"):
        (tmp_path / name).mkdir()
    every = ["--every"] if which == "all" else []
    output = run_script(
        "tests/conformance/audited.py",
        tmp_path,
        *every,
        env={"PYTHONDONTWRITEBYTECODE": "1"}.items(),
    )
    assert output.strip() == "", output
