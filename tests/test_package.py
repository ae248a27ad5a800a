import pathlib
import re
import subprocess
import sys

import keras_dlkit as dlkit
from tests.test_types import public_objects

ROOT = pathlib.Path(__file__).parents[1]


def test_public_names_are_saved_for_ever():
    """Names in users' files: renaming one breaks them."""
    from keras.saving import get_registered_name

    names = {
        dlkit.Attached: "keras_dlkit>Attached",
        dlkit.optimizers.SAM: "keras_dlkit>SAM",
        dlkit.optimizers.GSAM: "keras_dlkit>GSAM",
        dlkit.optimizers.FriendlySAM: "keras_dlkit>FriendlySAM",
        dlkit.optimizers.LookSAM: "keras_dlkit>LookSAM",
        dlkit.optimizers.MomentumSAM: "keras_dlkit>MomentumSAM",
        dlkit.optimizers.Masked: "keras_dlkit>Masked",
        dlkit.schedules.ConstantSparsity: "keras_dlkit>ConstantSparsity",
        dlkit.schedules.PolynomialSparsity: "keras_dlkit>PolynomialSparsity",
        dlkit.regularizers.HypersphericalEnergy: (
            "keras_dlkit>HypersphericalEnergy"
        ),
        dlkit.regularizers.Sum: "keras_dlkit>Sum",
        dlkit.layers.MixUp: "keras_dlkit>MixUp",
        dlkit.layers.CutMix: "keras_dlkit>CutMix",
        dlkit.layers.CutOut: "keras_dlkit>CutOut",
        dlkit.layers.ManifoldMixUp: "keras_dlkit>ManifoldMixUp",
        dlkit.layers.MixPoint: "keras_dlkit>MixPoint",
        dlkit.layers.RandomChoice: "keras_dlkit>RandomChoice",
        dlkit.layers.Supermask: "keras_dlkit>Supermask",
    }
    for cls, name in names.items():
        assert get_registered_name(cls) == name


def test_the_import_loads_no_backend_of_its_own():
    """Nothing that `import keras` has not loaded, but our own modules."""
    script = (
        "import sys, keras; before = set(sys.modules); import keras_dlkit; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    output = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split() == ["keras_dlkit"]


def test_the_catalogue_is_whole():
    """Every public name but the pure functions, and layers made by another."""
    text = (ROOT / "README.md").read_text()
    for path, _ in public_objects():
        *_, place, name = path.split(".")
        if place == "ops" or name == "Attached":
            continue
        if not name.endswith("BatchEnsemble"):
            assert re.search(rf"\b{name}\b", text), path


def test_only_the_train_step_knows_the_backend():
    for path in (ROOT / "keras_dlkit").rglob("*.py"):
        if path.parent.name == "_train_step":
            continue
        text = path.read_text()
        assert not re.search(r"backend\(\)\s*[!=]=", text), path
        assert not re.search(
            r"^\s*(import|from) (tensorflow|jax|torch)\b", text, re.MULTILINE
        ), path


def test_files_are_small():
    for path in (ROOT / "keras_dlkit").rglob("*.py"):
        lines = len(path.read_text().splitlines())
        limit = 150 if path.parent.name == "_train_step" else 500
        assert lines <= limit, (path, lines)
