"""The scripts in `examples/` do what they say, at a size for tests."""

import ast
import gzip
import importlib.util
import json
import pathlib
import re
import struct
import sys
import types

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.metrics import roc_auc_score

import keras_dlkit as dlkit
from tests.running import slow_to_compile

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
THREE_LINES = (EXAMPLES / "three_lines.py").read_text(encoding="utf-8")

pytestmark = pytest.mark.filterwarnings("ignore:Limiting (epochs|steps)")


def load(name, source=None):
    """An example as a module, or what would be one with this source."""
    path = EXAMPLES / f"{name}.py"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    code = source or path.read_text(encoding="utf-8")
    exec(compile(code, str(path), "exec"), vars(module))
    return module


@pytest.fixture
def two_steps():
    keras.config.set_max_epochs(1)
    keras.config.set_max_steps_per_epoch(2)
    yield
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)


# three_lines.py: without the marked lines, ordinary Keras.

MARK = "# +"
SCRIPTS = ["from_scratch", "fine_tuned"]
if importlib.util.find_spec("keras_hub"):
    SCRIPTS.append("keras_hub_backbone")
# Compiled anew, these take 5 to 25 seconds; torch does not compile.
SLOW = {
    "tensorflow": ["fine_tuned"],
    "jax": ["fine_tuned", "keras_hub_backbone"],
    "torch": [],
}[keras.config.backend()]
RUN = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in SCRIPTS
]


def without_marked_lines(source, keep=None):
    """The source as plain Keras; the line `keep`, if given, stays."""
    return "\n".join(
        line
        for line in source.splitlines()
        if not line.endswith(MARK) or line == keep
    )


def function_source(source, name):
    functions = {
        node.name: node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    return ast.get_source_segment(source, functions[name])


def marked_lines(name):
    lines = function_source(THREE_LINES, name).splitlines()
    return [line for line in lines if line.endswith(MARK)]


def is_plain_keras(instance):
    return type(instance).__module__.split(".")[0] == "keras"


def assert_trained(history):
    assert 0 <= history.history["val_accuracy"][-1] <= 1
    assert np.isfinite(history.history["loss"]).all()
    assert history.model.optimizer.iterations == 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_at_most_three_lines_are_added_and_none_is_changed(name):
    marked = marked_lines(name)
    assert 1 <= len(marked) <= 3
    # Nothing of ours is left in the lines that are not marked.
    plain = function_source(without_marked_lines(THREE_LINES), name)
    assert "dlkit" not in plain
    for part in ("attach(", "SAM(", "MixUp("):
        assert part in "".join(marked)


@pytest.mark.usefixtures("two_steps")
@pytest.mark.parametrize("name", RUN)
def test_with_the_lines_it_is_trained_with_both(name):
    history = getattr(load("three_lines"), name)()
    assert_trained(history)
    assert isinstance(history.model, dlkit.Attached)
    assert isinstance(history.model.optimizer, dlkit.optimizers.SAM)
    assert [type(p) for p in history.model.parts] == [dlkit.layers.MixUp]


@slow_to_compile
@pytest.mark.usefixtures("two_steps")
@pytest.mark.parametrize("name", RUN)
def test_without_the_lines_it_is_plain_keras(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_dlkit", None)  # no such package
    plain = load("three_lines", without_marked_lines(THREE_LINES))
    history = getattr(plain, name)()
    assert_trained(history)
    assert is_plain_keras(history.model)
    assert is_plain_keras(history.model.optimizer)


@pytest.mark.parametrize("line", marked_lines("from_scratch"))
def test_a_line_that_is_not_marked_would_be_noticed(line, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_dlkit", None)
    source = without_marked_lines(THREE_LINES, keep=line)
    with pytest.raises((ImportError, NameError), match="dlkit"):
        load("three_lines", source).from_scratch()


@pytest.mark.parametrize("installed", [True, False])
def test_main_prints_the_accuracy_of_each(installed, monkeypatch, capsys):
    three_lines = load("three_lines")
    for name in ("from_scratch", "fine_tuned", "keras_hub_backbone"):
        history = types.SimpleNamespace(history={"val_accuracy": [0.1, 0.75]})
        setattr(three_lines, name, lambda history=history, **_: history)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: installed or None
    )
    three_lines.main([])
    printed = capsys.readouterr().out
    assert printed.count("validation accuracy 75.0%") == 2 + installed
    assert ("pip install keras-hub" in printed) is not installed


# quickstart.py: its data.


@pytest.fixture(scope="module")
def quickstart():
    return load("quickstart")


def write_idx(path, values, code=8):
    """Big-endian: two zeros, type, rank, shape, values."""
    header = struct.pack(
        f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape
    )
    content = header + values.astype(values.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(
        gzip.compress(content) if path.suffix == ".gz" else content
    )
    return path


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images-idx3-ubyte.gz"])
@pytest.mark.parametrize(
    ("dtype", "code"),
    [("uint8", 8), ("int8", 9), ("int16", 11), ("int32", 12), ("float32", 13)],
)
def test_read_idx(quickstart, tmp_path, name, dtype, code):
    values = np.arange(2 * 3 * 5).reshape(2, 3, 5).astype(dtype)
    values[0, 0, 0] = 100
    read = quickstart.read_idx(write_idx(tmp_path / name, values, code))
    assert read.dtype.kind == values.dtype.kind
    assert read.shape == (2, 3, 5)
    np.testing.assert_array_equal(read, values)


def test_read_idx_refuses_what_is_none(quickstart, tmp_path):
    path = write_idx(tmp_path / "labels", np.arange(9, dtype="uint8"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"9 values.*Received: 8"):
        quickstart.read_idx(path)
    path.write_bytes(b"\x89PNG and more")
    with pytest.raises(ValueError, match=r"Received: .*137, 80, 78"):
        quickstart.read_idx(path)


@pytest.fixture
def idx_folder(tmp_path):
    """400 images for training and 50 for the test, each of its own grey."""
    greys = np.arange(450).astype("int32")
    images = np.tile(greys[:, None, None], (1, 8, 8))
    labels = (greys % 10).astype("uint8")
    for part, rows in {"train": slice(400), "t10k": slice(400, 450)}.items():
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images[rows], 12)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels[rows])
    return tmp_path


def test_the_splits_have_nothing_in_common(quickstart, idx_folder):
    data = quickstart.split(str(idx_folder), train_size=300)
    sizes = [len(images) for images, _ in data]
    assert sizes == [256, 64, 50]  # whole batches of 64, a quarter of that
    greys = [
        np.rint(images[:, 0, 0, 0] * 399).astype(int) for images, _ in data
    ]
    assert len(np.unique(np.concatenate(greys))) == sum(sizes)
    np.testing.assert_array_equal(np.sort(greys[2]), np.arange(400, 450))
    for grey, (images, targets) in zip(greys, data):
        assert images.shape[1:] == (8, 8, 1)
        np.testing.assert_array_equal(targets.argmax(axis=1), grey % 10)


def test_the_digits(quickstart):
    data = quickstart.split("digits", train_size=2000)
    assert [len(images) for images, _ in data] == [832, 208, 700]
    for images, targets in data:
        assert images.min() == 0 and images.max() == 1
        assert targets.shape == (len(images), 10)
        np.testing.assert_array_equal(targets.sum(axis=1), 1)


def test_a_folder_without_the_files_is_refused(quickstart, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fashion_mnist.*train-images"):
        quickstart.split(str(tmp_path), train_size=64)


def test_wrong_labels(quickstart):
    targets = np.eye(10, dtype="float32")[np.arange(200) % 10]
    before = targets.copy()
    changed = quickstart.with_wrong_labels(targets, 0.4, seed=1)
    assert (changed.argmax(axis=1) != targets.argmax(axis=1)).sum() == 80
    np.testing.assert_array_equal(
        np.sort(changed, axis=1)[:, -2:], [[0, 1]] * 200
    )
    np.testing.assert_array_equal(targets, before)
    np.testing.assert_array_equal(
        quickstart.with_wrong_labels(targets, 0.0, seed=1), targets
    )


# quickstart.py: its results.


def test_the_table_has_means_and_deviations(quickstart, monkeypatch):
    monkeypatch.setattr(quickstart, "METHODS", ("plain", "SAM"))
    accuracies = {
        ("plain", 0.0): (90, 92),
        ("plain", 0.3): (50, 70),
        ("SAM", 0.0): (95, 95),
        ("SAM", 0.3): (80, 81),
    }
    runs = [
        quickstart.Run(method, noise, accuracy, [accuracy], seconds=2.0)
        for (method, noise), pair in accuracies.items()
        for accuracy in pair
    ]
    report = quickstart.report(runs, 0.3, seeds=2, test_size=700)
    cells = [re.split(r" *\| *", line)[1:-1] for line in report.split("\n")[:4]]
    assert cells[0][2] == "error, 30% wrong labels"
    assert cells[2] == ["plain", "91.0 ± 1.4", "40.0 ± 14.1", "1", "2.0"]
    assert cells[3] == ["SAM", "95.0 ± 0.0", "19.5 ± 0.7", "2", "2.0"]
    assert "700 test images" in report


@slow_to_compile
def test_quickstart_writes_a_table_and_pictures(
    quickstart, tmp_path, monkeypatch, capsys
):
    methods = ("plain", "SAM + MixUp")
    monkeypatch.setattr(quickstart, "METHODS", methods)
    out = tmp_path / "results"
    quickstart.main(
        ["--seeds=1", "--epochs=1", "--train-size=128", f"--out={out}"]
    )
    printed = capsys.readouterr().out
    results = (out / "results.md").read_text(encoding="utf-8")
    assert results in printed
    for method in methods:
        assert re.search(rf"^\| {re.escape(method)} +\| \d", results, re.M)
    for name in ("accuracies", "curves", "blends"):
        picture = imread(out / f"{name}.png")
        assert min(picture.shape[:2]) > 400
        assert picture[..., :3].std() > 0.01


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--noise=1.5", "between 0 and 1"),
        ("--train-size=10", "at least 64"),
        ("--seeds=0", "--seeds must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(quickstart, capsys, option, message):
    with pytest.raises(SystemExit):
        quickstart.main([option])
    assert message in capsys.readouterr().err


# quickstart.ipynb


def notebook_cells():
    text = (EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8")
    return [
        "".join(cell["source"])
        for cell in json.loads(text)["cells"]
        if cell["cell_type"] == "code"
    ]


def test_the_notebook_is_that_of_the_script():
    """`python examples/make_notebook.py` writes it anew."""
    committed = (EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8")
    assert committed == load("make_notebook").text()
    code = "\n".join(notebook_cells())
    assert "dlkit.attach(" in code and "argparse" not in code


SMALL = {
    "%matplotlib inline\n": "",
    "train_size=2000": "train_size=128",
    "epochs=20": "epochs=1",
}


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(monkeypatch):
    display = types.SimpleNamespace(Markdown=str)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    names = {"__name__": "notebook"}
    for cell in notebook_cells():
        for old, new in SMALL.items():
            cell = cell.replace(old, new)
        exec(cell, names)
        if "METHODS" in names:
            names["METHODS"] = ("plain", "SAM + MixUp")
    assert [run.noise for run in names["runs"]] == [0.0, 0.0, 0.4, 0.4]
    assert all(len(run.validation_accuracies) == 1 for run in names["runs"])
    for cell in notebook_cells()[-3:]:
        assert isinstance(eval(cell, names), Figure)


# mixing.py


@slow_to_compile
def test_mixing_writes_a_table_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    mixing = load("mixing")
    colors = {name: mixing.COLORS[name] for name in ("plain", "CutMix")}
    monkeypatch.setattr(mixing, "COLORS", colors)
    mixing.main(
        ["--seeds=1", "--epochs=1", "--train-size=64", f"--out={tmp_path}"]
    )
    results = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert results in capsys.readouterr().out
    assert re.search(r"^\| CutMix +\| \d", results, re.M)
    for name in ("accuracies", "mixed"):
        picture = imread(tmp_path / f"{name}.png")
        assert min(picture.shape[:2]) > 400
        assert picture[..., :3].std() > 0.01


# sharpness_aware.py


@slow_to_compile
def test_sharpness_aware_writes_a_table_and_a_picture(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(EXAMPLES)  # it takes the data of quickstart.py
    script = load("sharpness_aware")
    methods = {name: script.METHODS[name] for name in ("plain", "MomentumSAM")}
    monkeypatch.setattr(script, "METHODS", methods)
    monkeypatch.setattr(script, "STEPS_AWAY", np.array([-0.5, 0.0, 0.5]))
    script.main(
        ["--seeds=2", "--epochs=1", "--train-size=64", f"--out={tmp_path}"]
    )
    results = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert results in capsys.readouterr().out
    assert re.search(r"^\| MomentumSAM +\| 1 +\| \d", results, re.M)
    picture = imread(tmp_path / "sharpness_aware.png")
    assert min(picture.shape[:2]) > 400
    assert picture[..., :3].std() > 0.01


# multi_task.py


@slow_to_compile
def test_multi_task_prints_a_table(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    script = load("multi_task")
    monkeypatch.setattr(script, "TURNS", 1)
    names = ["equal", "searched", "UncertaintyWeighting"]
    script.main(
        ["--seeds=1", "--epochs=1", "--search", "0.01", "--only", *names]
    )
    printed = capsys.readouterr().out
    for name in names:
        assert re.search(rf"^\| {name} +\| \d[^|]+\| \d", printed, re.M)
    assert "found: {'digit': 1.0, 'angle': 0.01, 'image': 10.0}" in printed
    assert re.search(r"sigmas: digit \d.*angle \d+.*image 0", printed)


def test_multi_task_has_a_test_set_apart(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    data = load("multi_task").load()
    images, targets = data.test
    assert len(images) == 697 and len(data.train[0]) == 3 * 832
    clean = {t.tobytes() for t in data.train[1]["image"]}
    assert not any(t.tobytes() in clean for t in targets["image"])
    assert np.abs(targets["angle"]).max() <= 45


# sde_net.py


@pytest.mark.parametrize("width", [pytest.param(8, marks=slow_to_compile)])
def test_sde_net_writes_a_table_and_a_picture(
    tmp_path, monkeypatch, capsys, width
):
    monkeypatch.syspath_prepend(EXAMPLES)
    script = load("sde_net")
    monkeypatch.setattr(script, "NUM_STEPS", 2)
    sizes = ["--train-size=64", "--test-size=20", f"--width={width}"]
    script.main(["--seeds=1", "--epochs=1", *sizes, f"--out={tmp_path}"])
    results = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert results in capsys.readouterr().out
    for name in ("plain, probability", "SDE-Net, diffusion"):
        assert re.search(rf"^\| {name} +(\| \d[\d.]+ +){{5}}\|$", results, re.M)
    picture = imread(tmp_path / "sde_net.png")
    assert min(picture.shape[:2]) > 400
    assert picture[..., :3].std() > 0.01


def test_sde_net_never_learns_from_what_is_unknown(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    script = load("sde_net")
    data = script.prepare("digits", 1000, 50)
    images, labels = data.train
    assert set(labels) == set(data.known[1]) == set(range(7))
    np.testing.assert_allclose([images.mean(), images.std()], [0, 1], atol=1e-4)
    seen = {image.tobytes() for image in images}
    for unseen in (data.known[0], *data.unknown.values()):
        assert len(unseen) == 50
        assert not any(image.tobytes() in seen for image in unseen)
    known, shuffled = data.known[0], data.unknown["shuffled"]
    for one, other in zip(known, shuffled):
        assert (one != other).any()
        np.testing.assert_array_equal(np.sort(one, None), np.sort(other, None))


def test_sde_net_scores_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    script = load("sde_net")
    random = np.random.default_rng(0)
    known, unknown = random.normal(1, 1, 40), random.normal(0, 1, 30)
    area, refused = script.detected({"known": known, "other": unknown}, "other")
    labels = np.repeat([1, 0], [40, 30])
    scores = np.concatenate([known, unknown])
    np.testing.assert_allclose(area, 100 * roc_auc_score(labels, scores))
    # Of 40, 38 are 95%: the third lowest of them is the threshold.
    lowest = np.sort(known)[2]
    np.testing.assert_allclose(refused, 100 * np.mean(unknown < lowest))


def test_sde_net_refuses_less_than_a_batch(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    with pytest.raises(SystemExit):
        load("sde_net").main(["--train-size=10"])
    assert "at least" in capsys.readouterr().err


# batch_ensemble.py


@slow_to_compile
def test_batch_ensemble_prints_a_table_and_draws(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(EXAMPLES)
    script = load("batch_ensemble")
    names = ["one network", 'BatchEnsemble, "split"']
    script.main(
        [
            "--seeds=1",
            "--epochs=1",
            f"--out={tmp_path / 'new'}",
            "--only",
            *names,
        ]
    )
    printed = capsys.readouterr().out
    for name in names:
        assert re.search(rf"^\| {name} +\| \d[^|]+\| \d", printed, re.M)
    one, ensemble = (
        int(found.replace(",", ""))
        for found in re.findall(r"\| (\d+,\d+) ", printed)
    )
    assert one < ensemble < 1.1 * one
    picture = imread(tmp_path / "new" / "batch_ensemble.png")
    assert min(picture.shape[:2]) > 400
    assert picture[..., :3].std() > 0.01


def test_batch_ensemble_has_digits_that_are_unknown(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    data = load("batch_ensemble").load()
    labels = [*data.train[1], *data.test[1]]
    assert sorted(set(labels)) == list(range(8))
    assert len(labels) + len(data.unknown) == 1797
    seen = {image.tobytes() for image in data.train[0]}
    assert not any(image.tobytes() in seen for image in data.unknown)


# reuse.py


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the converters
def test_reuse_serves_what_it_trained(tmp_path, capfd):
    script = load("reuse")
    script.main(["--epochs=1", f"--out={tmp_path}"])
    printed = capfd.readouterr().out  # that of the reader, too
    served = re.findall(r"^(\S+): differs by (\S+)$", printed, re.M)
    assert all(float(gap) < 1e-5 for _, gap in served)
    names = [name for name, _ in served]
    assert "net.keras-by_keras" in names
    for form in script.FORMS[keras.config.backend()]:
        file = script.FILES[form]
        missing = script.missing(form)
        assert bool(missing) is not any(n.startswith(file) for n in names)
        assert (f"{form}: pip install" in printed) is bool(missing)
    if (tmp_path / "saved_model").exists():  # read by the hub, or said why not
        by_hub = "saved_model-by_tensorflow_hub" in names
        assert ("by_tensorflow_hub: pip install" in printed) is not by_hub


def test_reuse_reads_without_this_package():
    """The reader would fail if a file needed it."""
    reader = load("reuse").READER
    assert 'sys.modules["keras_dlkit"] = None' in reader
    assert reader.count("keras_dlkit") == 1
