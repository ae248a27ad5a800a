import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

import keras_dlkit as dlkit
from keras_dlkit.sparsity import _state
from keras_dlkit.sparsity._encoding import as_array
from keras_dlkit.sparsity._encoding import decode
from keras_dlkit.sparsity._encoding import encode
from tests.running import slow_to_compile
from tests.sparsity import nets

sparsity = dlkit.sparsity


def same_bits(a, b):
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (
        np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )


@pytest.mark.parametrize("make", [nets.branched, nets.nested])
@pytest.mark.parametrize("compress", [True, False])
def test_weights_come_back_bit_for_bit(make, compress, tmp_path):
    model = nets.sparsify(nets.randomize(make()))
    model.compile("adam", "mse")
    for inner in model.layers:
        if isinstance(inner, keras.Model):
            inner.compile("adam", "mse")
    path = tmp_path / "model.compact"
    size = sparsity.save_compact(model, path, compress=compress)
    assert size == path.stat().st_size
    loaded = sparsity.load_compact(path)
    assert not any(
        getattr(layer, "compiled", False) for layer in (loaded, *loaded.layers)
    )
    assert model.compiled
    for a, b in zip(model.weights, loaded.weights, strict=True):
        same_bits(as_array(a), as_array(b))
    x = nets.data(model)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )
    first = path.read_bytes()
    sparsity.save_compact(model, path, compress=compress)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["model.compact"]


@keras.saving.register_keras_serializable("tests")
class Holder(keras.layers.Layer):
    """Weights of many dtypes."""

    def build(self, shape):
        for dtype in ("float32", "bfloat16", "float16", "int32", "uint8"):
            for size in ((3, 7), (), (0, 4), (40,)):
                self.add_weight(
                    shape=size,
                    dtype=dtype,
                    initializer="zeros",
                    trainable=False,
                    autocast=False,
                    name=f"{dtype}_{len(size)}",
                )

    def call(self, x):
        return x


def test_all_dtypes_shapes_and_odd_values(tmp_path):
    model = keras.Sequential([keras.Input((2,)), Holder()])
    rng = np.random.default_rng(0)
    for v in model.weights:
        values = rng.integers(0, 100, v.shape) * (rng.random(v.shape) > 0.7)
        if "float" in v.dtype and v.shape == (40,):
            values = values / 3.0
            values[:4] = -0.0, np.inf, np.nan, -1e-3
        v.assign(np.asarray(values, "float32" if "float" in v.dtype else None))
    sparsity.save_compact(model, tmp_path / "m")
    loaded = sparsity.load_compact(tmp_path / "m")
    kinds = set()
    for a, b in zip(model.weights, loaded.weights, strict=True):
        same_bits(as_array(a), as_array(b))
        kinds.add((encode(as_array(a))[0], str(as_array(a).dtype)))
    assert {kind for kind, _ in kinds} == {"raw", "sparse", "signed"}
    assert "bfloat16" in {dtype for _, dtype in kinds}


@keras.saving.register_keras_serializable("tests")
class Shift(keras.layers.Layer):
    """State that is no variable."""

    amount = 0.0

    def call(self, x):
        return x + self.amount

    def save_own_variables(self, store):
        store["amount"] = self.amount

    def load_own_variables(self, store):
        self.amount = float(store["amount"])


def test_state_that_is_no_variable_comes_along(tmp_path):
    """What was adapted, vocabularies, and a layer of one's own."""
    pytest.importorskip("tensorflow")  # lookups of Keras are of it
    numbers, words = keras.Input((2,)), keras.Input((3,), dtype="int32")
    norm = layers.Normalization()
    lookup = layers.IntegerLookup(output_mode="multi_hot")
    weighted = layers.IntegerLookup(output_mode="tf_idf")
    x = np.array([[1.0, 20.0], [3.0, 60.0], [8.0, 10.0]], "float32")
    w = np.array([[7, 7, 9], [9, 4, 7], [5, 7, 7]], "int32")
    norm.adapt(x)
    for layer in (lookup, weighted):
        layer.adapt(w)
    shift = Shift()
    shift.amount = 3.5
    parts = [shift(norm(numbers)), lookup(words), weighted(words)]
    features = layers.Concatenate()(parts)
    model = keras.Model([numbers, words], layers.Dense(2)(features))
    expected = model.predict([x, w], verbose=0)
    sparsity.save_compact(model, tmp_path / "m")
    for copy in (
        sparsity.load_compact(tmp_path / "m"),
        sparsity.strip(model),
        sparsity.shrink(model, keep_unsupported=True),
        sparsity.supermask(model, 0.0, weights=None),
    ):
        found = copy.predict([x, w], verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_file_of_a_layer_is_written_outside_of_a_folder():
    pytest.importorskip("tensorflow")
    layer = layers.IntegerLookup()
    layer.adapt([1, 2])
    arrays, files = _state.read(layer)
    (data,) = files.values()
    with pytest.raises(ValueError, match=r"'../outside' for 'integer_lookup"):
        _state.write(layer, arrays, {"../outside": data})


def test_the_encoding_by_hand():
    values = np.zeros(20, "float32")
    values[[3, 9]] = 1.5, 2.0
    kind, data = encode(values)
    # Bits from the highest: places 3 and 9 of the first two bytes.
    assert (kind, data[:3]) == ("sparse", bytes([0b00010000, 0b01000000, 0]))
    assert data[3:] == np.float32([1.5, 2.0]).tobytes()
    values[9] = -0.0  # the 9th of the zeros
    kind, data = encode(values)
    assert (kind, data[:3]) == ("signed", bytes([0b00010000, 0, 0]))
    assert data[3:6] == bytes([0, 0b10000000, 0])
    assert data[6:] == np.float32(1.5).tobytes()
    same_bits(decode(kind, data, (20,), "float32"), values)
    assert encode(np.ones(4, "int8")) == ("raw", b"\1\1\1\1")


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sparsity.load_compact(path)
    path.write_text("no")
    with pytest.raises(ValueError, match="another kind of file"):
        sparsity.load_compact(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
    with pytest.raises(ValueError, match="config.json"):
        sparsity.load_compact(path)
    model = nets.nested()
    sparsity.save_compact(model, path)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(content["manifest.json"])
    manifest["weights"][0]["shape"] = [9, 9]
    content["manifest.json"] = json.dumps(manifest)
    with zipfile.ZipFile(path, "w") as file:
        for name, text in content.items():
            file.writestr(name, text)
    with pytest.raises(ValueError, match=r"must hold the weights.*\[9, 9\]"):
        sparsity.load_compact(path)
    manifest["version"] = 99
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("manifest.json", json.dumps(manifest))
    with pytest.raises(ValueError, match="version 99"):
        sparsity.load_compact(path)


def test_a_lambda_is_loaded_only_on_trust(tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x)])
    sparsity.save_compact(model, tmp_path / "m")
    with pytest.raises(ValueError, match="safe_mode|unsafe"):
        sparsity.load_compact(tmp_path / "m")
    sparsity.load_compact(tmp_path / "m", safe_mode=False)


def test_the_report_counts_by_hand():
    model = keras.Sequential([keras.Input((10,)), layers.Dense(8, name="d")])
    kernel = np.zeros((10, 8), "float32")
    kernel[0] = 1.0
    model.layers[0].set_weights([kernel, np.zeros(8)])
    found = sparsity.report(model)
    (row,) = found.kernels
    assert (row.size, row.nonzero, row.density) == (80, 8, 0.1)
    assert (row.dense, row.compact) == (320, 10 + 32)
    assert (found.total.dense, found.total.compact) == (352, 42 + 1)
    assert found.density == 0.1
    assert found.dense_gzip < 100 and found.compact_gzip < 100
    assert "make no layer faster" in str(found) and row.name in str(found)


def test_quantized_models(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="d")])
    kernel = np.zeros((4, 8), "float32")
    kernel[0] = 1.0
    model.layers[0].set_weights([kernel, np.ones(8)])
    packed = keras.models.clone_model(model)
    model.layers[0].quantize("int8")
    found = sparsity.report(model)
    (row,) = found.kernels
    assert (row.shape, row.density, found.density) == ((4, 8), 0.25, 0.25)
    x = nets.data(model)
    expected = model.predict(x, verbose=0)
    sparsity.save_compact(model, tmp_path / "m")
    for copy in (
        sparsity.load_compact(tmp_path / "m"),
        sparsity.strip(model),
        sparsity.shrink(model, keep_unsupported=True),
    ):
        found = copy.predict(x, verbose=0)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"d \(Dense\)"):
        sparsity.shrink(model)
    packed.layers[0].quantize("int4")
    with pytest.raises(ValueError, match="before `quantize`.*'d': 'int4'"):
        sparsity.report(packed)


@slow_to_compile
def test_the_report_of_a_supermask_is_that_of_the_stripped_model():
    masked = sparsity.supermask(nets.branched(), 0.7, seed=0)
    ours = sparsity.report(masked)
    plain = sparsity.report(sparsity.strip(masked))
    assert [r.nonzero for r in ours.kernels] == [
        r.nonzero for r in plain.kernels
    ]
    assert ours.total == plain.total
    assert ours.compact_gzip == plain.compact_gzip


def test_the_file_is_as_small_as_the_report_says(tmp_path):
    model = keras.Sequential([keras.Input((300,)), layers.Dense(200)])
    nets.sparsify(nets.randomize(model), 0.9)
    found = sparsity.report(model)
    size = sparsity.save_compact(model, tmp_path / "m", compress=False)
    assert found.total.compact < size < found.total.compact + 4000
    assert size < 0.2 * found.total.dense
