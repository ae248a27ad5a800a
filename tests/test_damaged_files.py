"""Files cut off, with a bit flipped, or with a part missing.

What is loaded is what was saved, bit for bit, or there is an error: never a
part of it, and nothing in silence.
"""

import contextlib
import io
import re
import zipfile
import zlib

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import keras_dlkit as dlkit
from keras_dlkit import _plain
from keras_dlkit.callbacks import _sealed
from keras_dlkit.callbacks._checkpoint import Checkpoint
from keras_dlkit.callbacks._save_files import SaveFolder
from tests.callbacks import tickets
from tests.conformance import registry
from tests.conformance.test_contracts import assert_same

# What Keras raises where the zip is damaged. The file is the one it was given.
OF_KERAS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)
places = st.floats(0, 1, exclude_max=True)
bits = st.integers(0, 7)
cuts = pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.999])


# Models with parts, in files of Keras.


def case(name):
    model = registry.attached(registry.BY_NAME[name])
    registry.fit(model, registry.BY_NAME[name], epochs=1)
    return model


def trained(model):
    model.compile("adam", "categorical_crossentropy")
    registry.fit(model, epochs=1)
    return model


def supermask():
    return trained(dlkit.sparsity.supermask(registry.network(), 0.5, seed=0))


def batch_ensemble():
    net = registry.network(plain=True)
    return trained(dlkit.models.BatchEnsemble(net, 2, seed=0))


def stripped():
    return dlkit.sparsity.strip(supermask())


MODELS = {
    "attached": lambda: case("sam_and_mix_up"),
    "several_tasks": lambda: case("sam_and_uncertainty_weighting"),
    "masked": lambda: case("masked"),
    "supermask": supermask,
    "batch_ensemble": batch_ensemble,
    "stripped": stripped,
}


def state(model):
    """With an optimizer, if it has been compiled.

    Of seed states, which Keras forgets, those of an attached model.
    """
    saved = model.variables if isinstance(model, dlkit.Attached) else []
    saved = [*(saved or model.weights)]
    if model.compiled:
        saved += model.optimizer.variables
    return [np.asarray(ops.convert_to_numpy(v)) for v in saved]


class Saved:
    """A file: where it is, its bytes, and the state that was saved.

    Named in reports by its name alone.
    """

    def __init__(self, path, model=None):
        self.path, self.content = path, path.read_bytes()
        self.state = model and state(model)

    def __repr__(self):
        return self.path.name

    def damage(self, place, bit, share=None):
        content = bytearray(self.content)
        content[int(place * len(content))] ^= 1 << bit
        if share is not None:
            content = self.content[: int(share * len(content))]
        self.path.write_bytes(content)

    def cut(self, share):
        self.damage(0, 0, share)


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / f"{request.param}.keras"
    keras.utils.set_random_seed(1)
    model = MODELS[request.param]()
    model.save(path)
    return Saved(path, model)


@cuts
def test_a_keras_file_that_is_cut_off_is_refused(saved, share):
    saved.cut(share)
    with pytest.raises(ValueError, match=rf"{saved}.*ensure the file"):
        keras.saving.load_model(saved.path)


@given(place=places, bit=bits)
def test_a_keras_file_with_a_flipped_bit_is_whole_or_refused(saved, place, bit):
    saved.damage(place, bit)
    try:
        model = keras.saving.load_model(saved.path)
    except OF_KERAS:
        return
    assert_same(saved.state, state(model))  # the bit was of a date, or the like


@given(place=places, bit=bits)
def test_detach_raises_no_bare_error_of_a_damaged_file(saved, place, bit):
    saved.damage(place, bit)
    with contextlib.suppress(ValueError):  # and nothing else of `OF_KERAS`
        dlkit.detach(saved.path)


@pytest.mark.parametrize("damage", _plain.DAMAGE)
def test_detach_says_which_file_is_damaged(damage, tmp_path, monkeypatch):
    def load(path):
        raise damage("in the file")

    monkeypatch.setattr(keras.saving, "load_model", load)
    path = tmp_path / "net.keras"
    expected = rf"{path}.*\({damage.__name__}: .*in the file.*Save the model"
    with pytest.raises(ValueError, match=expected) as caught:
        dlkit.detach(path)
    assert isinstance(caught.value.__cause__, damage)


def datasets(content):
    names = []

    def note(name, node):
        if isinstance(node, h5py.Dataset):
            names.append(name)

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(note)
    return names


def without(content, dataset):
    """The same `.keras` file, sound as a zip, where one array is missing."""
    written = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(written, "w") as new,
    ):
        for name in old.namelist():
            member = old.read(name)
            if name.endswith(".h5"):
                buffer = io.BytesIO(member)
                with h5py.File(buffer, "r+") as file:
                    del file[dataset]
                member = buffer.getvalue()
            new.writestr(name, member)
    return written.getvalue()


def arrays_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        names = datasets(file.read("model.weights.h5"))
    # Where there are no random states at all, it is the file of a plain model.
    alone = [n for n in names if n.startswith("random_state/")]
    return [n for n in names if alone != [n]]


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@given(place=places)
def test_an_array_that_is_missing_is_said(saved, place):
    names = arrays_of(saved.content)
    name = names[int(place * len(names))]
    saved.path.write_bytes(without(saved.content, name))
    errors = (ValueError,)
    if "optimizer" in name:
        # Keras goes on with a fresh optimizer, and warns of it.
        errors = (ValueError, UserWarning)
    with pytest.raises(errors, match="could not be loaded|Skipping variable"):
        keras.saving.load_model(saved.path)


# Files of our own.


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "plain"])
def compact(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("compact") / "net.compact"
    keras.utils.set_random_seed(1)
    model = stripped()
    dlkit.sparsity.save_compact(model, path, compress=request.param)
    return Saved(path, model)


@cuts
def test_a_compact_file_that_is_cut_off_is_refused(compact, share):
    compact.cut(share)
    with pytest.raises(ValueError, match=f"{compact}.*Save the model again"):
        dlkit.sparsity.load_compact(compact.path)


@given(place=places, bit=bits)
def test_a_compact_file_with_a_flipped_bit_is_whole_or_refused(
    compact, place, bit
):
    compact.damage(place, bit)
    try:
        model = dlkit.sparsity.load_compact(compact.path)
    except ValueError as error:
        assert re.search(f"{compact}.*Save the model again", str(error))
    else:
        assert_same(compact.state, state(model))


def test_a_compact_file_without_a_tensor_is_refused(compact):
    with zipfile.ZipFile(io.BytesIO(compact.content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    del members["weights/1"]
    with zipfile.ZipFile(compact.path, "w") as file:
        for name, member in members.items():
            file.writestr(name, member)
    with pytest.raises(ValueError, match=r"net.compact.*no \['weights/1'\]"):
        dlkit.sparsity.load_compact(compact.path)


def test_a_compact_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.compact"):
        dlkit.sparsity.load_compact(tmp_path / "none.compact")


# The saves of `Resume`: no bit of them can change unseen.


@given(place=places, bit=bits, share=st.none() | places)
def test_the_save_before_a_damaged_one_is_read(
    tmp_path_factory, place, bit, share
):
    folder = tmp_path_factory.mktemp("saves")
    saves = SaveFolder(folder)
    for epoch in range(2):
        where = {"epoch": epoch, "batch": 0}
        saves.write(where, {"weights": np.arange(6.0) + epoch})
    first, last = (Saved(path) for path in sorted(folder.iterdir()))
    last.damage(place, bit, share)
    with pytest.warns(UserWarning, match=f"{last}' is damaged"):
        meta, arrays = SaveFolder(folder).read()
    assert meta["epoch"] == 0
    np.testing.assert_array_equal(arrays["weights"], np.arange(6.0))
    first.damage(place, bit, share)
    with pytest.warns(UserWarning, match="is damaged"):
        with pytest.raises(ValueError, match=f"{first}.*Delete them"):
            SaveFolder(folder).read()


# The checkpoint of `LotteryTicket`: HDF5, which has no sums of its own.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    keras.utils.set_random_seed(1)
    model = registry.network()
    checkpoint = Checkpoint(tmp_path_factory.mktemp("checkpoint"))
    checkpoint.save(model)
    return Saved(checkpoint.path, model)


def test_a_whole_checkpoint_is_loaded(checkpoint):
    checkpoint.path.write_bytes(checkpoint.content)
    model = registry.network()
    for weight in model.weights:
        weight.assign(np.ones(weight.shape))
    assert Checkpoint(checkpoint.path.parent).load(model)
    assert_same(checkpoint.state, state(model))


@given(place=places, bit=bits, share=st.none() | places)
def test_a_damaged_checkpoint_is_refused(checkpoint, place, bit, share):
    checkpoint.damage(place, bit, share)
    with pytest.raises(ValueError, match=f"{checkpoint}.*damaged.*Delete it"):
        Checkpoint(checkpoint.path.parent).load(registry.network())


def test_a_ticket_is_not_resumed_from_a_damaged_checkpoint(tmp_path):
    path = tmp_path / "latest.weights.h5"
    path.write_bytes(bytes(100))
    ticket = dlkit.callbacks.LotteryTicket(2, 2, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="checkpoint_dir.*damaged"):
        tickets.fit(tickets.net(), ticket, epochs=4)


def test_sealed_files_of_any_length(tmp_path, monkeypatch):
    monkeypatch.setattr(_sealed, "CHUNK", 7)
    for length in (0, 1, 6, 7, 8, 50):
        path = tmp_path / str(length)
        path.write_bytes(bytes(range(length)))
        with pytest.raises(_sealed.DamagedSave, match=f"its {length} bytes"):
            _sealed.check(path)
        _sealed.seal(path)
        _sealed.check(path)
        assert path.read_bytes()[:length] == bytes(range(length))
