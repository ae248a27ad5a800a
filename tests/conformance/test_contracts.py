"""What must hold for every part, on the backend that runs."""

import os
import pathlib
import re
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_dlkit as dlkit
from tests.conformance import registry
from tests.conformance.registry import attached
from tests.conformance.registry import data
from tests.conformance.registry import fit
from tests.conformance.registry import state
from tests.running import slow_to_compile

BACKEND = keras.config.backend()
ROOT = pathlib.Path(__file__).parents[2]


# One case of each kind of step.
KINDS = "sam_every_2", "mix_up", "masked"


def is_slow(case):
    """Where a step is compiled before it runs: all but one of each kind."""
    return case.slow or (BACKEND != "torch" and case.name not in KINDS)


def over(cases, is_slow=lambda case: case.slow):
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(
                case, marks=[pytest.mark.slow] if is_slow(case) else []
            )
            for case in cases
        ],
        ids=lambda case: case.name,
    )


each_case = over(registry.CASES)
# For what depends on the step, not on the part in it.
each_kind = over(registry.CASES, is_slow)
each_step = over([*registry.CASES, *registry.NETWORKS], is_slow)


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


def run_script(*arguments, env=()):
    """Runs a script in a process of its own, and says what it said."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(env)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@each_kind
def test_the_null_setting_is_exact(case):
    null = attached(case, null=True)
    stock = registry.network(case)
    stock.compile(
        keras.optimizers.SGD(0.125, momentum=0.5),
        loss=registry.loss(case),
        metrics={"a": ["accuracy"]} if case.tasks else ["accuracy"],
    )
    histories = [fit(model, case).history for model in (null, stock)]
    for key, values in histories[1].items():
        assert histories[0][key] == values
    assert_same(
        [ops.convert_to_numpy(w) for w in null.model.weights],
        [ops.convert_to_numpy(w) for w in stock.weights],
    )


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is traced")
@each_kind
def test_fit_twice_traces_once(case):
    traces = []

    class Traced(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    model = attached(case)
    if case.tasks:
        inputs = keras.Input(case.input_shape)
        inner = keras.Model(inputs, model.model(Traced()(inputs)))
    else:
        inner = keras.Sequential([*model.model.layers, Traced()])
    inner.build((None, *case.input_shape))
    model = dlkit.attach(inner, *case.parts())
    model.compile(
        case.optimizer(keras.optimizers.SGD(0.1, momentum=0.5)),
        registry.loss(case),
    )
    fit(model, case, epochs=4)
    first = len(traces)
    fit(model, case, epochs=2)
    assert len(traces) == first


@each_kind
def test_it_changes_what_is_to_be_trained_alone(case):
    """Neither a frozen layer nor a weight that the loss does not reach."""
    trained, warned = [], []
    for null in (False, True):
        model = attached(case, null, net=registry.network(case, frozen=True))
        still = [
            v for v in model.model.weights if re.search("hidden|spare", v.path)
        ]
        assert len(still) == 3
        before = [ops.convert_to_numpy(v) for v in still]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(model, case)
        assert_same(before, [ops.convert_to_numpy(v) for v in still])
        trained.append(
            [ops.convert_to_numpy(v) for v in model.model.trainable_weights]
        )
        messages = {re.sub(r"_\d+", "", str(w.message)) for w in caught}
        warned.append({m for m in messages if "Gradients" in m})
    assert max(np.abs(a - b).max() for a, b in zip(*trained)) > 1e-5
    # As the null setting does, which takes the train step of Keras.
    assert warned[0] == warned[1]
    assert ("spare/spare" in str(warned)) == (BACKEND != "jax")  # has zeros


@each_step
def test_mixed_bfloat16(case):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = attached(case)
    history = fit(model, case).history["loss"]
    assert np.isfinite(history).all()
    assert {w.dtype for w in model.model.trainable_weights} == {"float32"}


@each_step
def test_an_overflow_in_mixed_float16_skips_the_step(case):
    keras.config.set_dtype_policy("mixed_float16")
    scaler = keras.optimizers.LossScaleOptimizer
    model = attached(case)
    assert isinstance(model.optimizer, scaler)
    optimizer = scaler(
        case.optimizer(keras.optimizers.SGD(0.1, momentum=0.5)),
        initial_scale=2.0**40,
    )
    model.compile(optimizer, registry.loss(case))
    before = [ops.convert_to_numpy(w) for w in model.trainable_weights]
    fit(model, case, epochs=1)
    assert_same(
        before, [ops.convert_to_numpy(w) for w in model.trainable_weights]
    )
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 0
    assert float(ops.convert_to_numpy(optimizer.dynamic_scale)) == 2.0**37
    fit(model, case, epochs=12)  # and goes on once the scale fits
    after = [ops.convert_to_numpy(w) for w in model.trainable_weights]
    assert any((a != b).any() for a, b in zip(before, after))
    assert all(np.isfinite(a).all() for a in after)


@each_step
def test_a_loss_scaler_inside_is_one_outside(case):
    keras.config.set_dtype_policy("mixed_float16")
    scaler = keras.optimizers.LossScaleOptimizer
    inside = attached(case)
    inside.compile(
        case.optimizer(
            scaler(keras.optimizers.SGD(0.1, momentum=0.5), initial_scale=256.0)
        ),
        registry.loss(case),
    )
    outside = attached(case)
    outside.compile(
        scaler(
            case.optimizer(keras.optimizers.SGD(0.1, momentum=0.5)),
            initial_scale=256.0,
        ),
        registry.loss(case),
    )
    for model in (inside, outside):
        fit(model, case)
    for a, b in zip(inside.trainable_weights, outside.trainable_weights):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), atol=1e-6
        )


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="JAX compiles by default; torch.compile is left alone",
)
@each_step
def test_xla(case):
    compiled = attached(case, plain=True, jit_compile=True)
    assert np.isfinite(fit(compiled, case).history["loss"]).all()
    if case.draws:  # other numbers under XLA
        return
    graph = attached(case, plain=True)
    fit(graph, case)
    for a, b in zip(state(graph), state(compiled)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has none there")
@each_step
def test_steps_per_execution(case):
    one, many = attached(case), attached(case, steps_per_execution=2)
    for model in (one, many):
        fit(model, case)
    for a, b in zip(state(one), state(many)):
        np.testing.assert_allclose(a, b, atol=1e-6)


@each_step
def test_gradient_accumulation(case):
    inner = keras.optimizers.SGD(
        0.1, momentum=0.5, gradient_accumulation_steps=2
    )
    model = attached(case, inner=inner)
    before = [ops.convert_to_numpy(w) for w in model.model.trainable_weights]
    fit(model, case, epochs=1, batch_size=22)
    # One batch of two: nothing is applied yet.
    assert_same(
        before, [ops.convert_to_numpy(w) for w in model.model.trainable_weights]
    )
    fit(model, case, epochs=2)
    after = [ops.convert_to_numpy(w) for w in model.model.trainable_weights]
    assert any((a != b).any() for a, b in zip(before, after))
    # Seven steps, of which every second one is an update.
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 3


@each_case
def test_wrapped_config_and_learning_rate(case):
    optimizer = case.optimizer(keras.optimizers.Adam(0.5))
    config = keras.saving.serialize_keras_object(optimizer)
    copy = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(copy) == config
    optimizer.learning_rate = 0.25
    assert float(ops.convert_to_numpy(optimizer.learning_rate)) == 0.25
    for part in case.parts():
        config = keras.saving.serialize_keras_object(part)
        copy = keras.saving.deserialize_keras_object(config)
        assert keras.saving.serialize_keras_object(copy) == config


@pytest.mark.parametrize(
    "slow", [False, pytest.param(True, marks=slow_to_compile)]
)
def test_saved_and_resumed_in_a_fresh_process(slow, tmp_path):
    """The other half of each run, bit for bit, where nothing is registered."""
    expected = {}
    for case in registry.BY_NAME.values():
        if is_slow(case) != slow:
            continue
        model = attached(case)
        fit(model, case, epochs=2)
        model.save(tmp_path / f"{case.name}.keras")
        fit(model, case, epochs=4, initial_epoch=2)
        expected[case.name] = state(model)
    run_script("tests/conformance/resume.py", tmp_path)
    for name, values in expected.items():
        resumed = np.load(tmp_path / f"{name}.npz")
        assert_same(values, [resumed[key] for key in resumed.files])


if BACKEND == "jax":
    import jax

    def rows(case, start, end):
        return keras.tree.map_structure(lambda t: t[start:end], data(case))

    @each_step
    def test_the_step_lowers_for_tpu_and_cuda(case):
        model = attached(case)
        fit(model, case, epochs=1)
        variables = [
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        ]
        arrays = tuple([v.value for v in group] for group in variables)
        exported = jax.export.export(
            jax.jit(model.train_step), platforms=["tpu", "cuda", "cpu"]
        )(arrays, rows(case, 0, 8))
        assert set(exported.platforms) == {"tpu", "cuda", "cpu"}

    @each_step
    def test_the_traced_choice_is_that_of_the_host(case):
        """`train_step` alone, as a loop of one's own would jit it."""
        host, traced = attached(case), attached(case)
        fit(host, case, epochs=1)
        groups = ("trainable_variables", "non_trainable_variables")
        traced.optimizer.build(traced.trainable_variables)
        fit(traced, case, epochs=0)
        traced.test_on_batch(*data(case))  # builds the metrics
        traced.reset_metrics()
        state_ = (
            *([v.value for v in getattr(traced, g)] for g in groups),
            [v.value for v in traced.optimizer.variables],
            [v.value for v in traced.metrics_variables],
        )
        step = jax.jit(traced.train_step)
        for i in range(0, 22, 8):
            _, state_ = step(state_, rows(case, i, i + 8))
        for variable, value in zip(host.trainable_variables, state_[0]):
            np.testing.assert_allclose(
                ops.convert_to_numpy(variable), value, atol=1e-6
            )
