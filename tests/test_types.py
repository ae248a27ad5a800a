"""The types that `py.typed` promises."""

import importlib
import inspect
import os
import pathlib
import pkgutil
import subprocess
import sys

import keras_dlkit
from tests.running import slow_to_compile

ROOT = pathlib.Path(__file__).parents[1]


def public_objects():
    modules = [keras_dlkit] + [
        importlib.import_module(f"keras_dlkit.{module.name}")
        for module in pkgutil.iter_modules(keras_dlkit.__path__)
        if module.ispkg and not module.name.startswith("_")
    ]
    for module in modules:
        for name, value in vars(module).items():
            if not name.startswith("_") and not inspect.ismodule(value):
                yield f"{module.__name__}.{name}", value


def public_functions():
    """Functions, constructors, and methods that have a docstring."""
    for path, value in public_objects():
        if not inspect.isclass(value):
            yield path, value
            continue
        for name, member in vars(value).items():
            if isinstance(member, property):
                member = member.fget
            member = getattr(member, "__func__", member)
            is_method = not name.startswith("_") and member.__doc__
            if inspect.isfunction(member) and (name == "__init__" or is_method):
                yield f"{path}.{name}", member


def test_every_public_signature_has_types():
    without = []
    for path, function in public_functions():
        signature = inspect.signature(function)
        without += [
            f"{path}({name})"
            for name, parameter in signature.parameters.items()
            if name not in ("self", "cls")
            and parameter.annotation is parameter.empty
        ]
        is_constructor = path.endswith(".__init__")
        if (
            signature.return_annotation is signature.empty
            and not is_constructor
        ):
            without.append(f"{path} ->")
    assert not without
    assert sum(1 for _ in public_functions()) > 100


def mypy(*arguments):
    # Without the cache: tests of three backends may run at once.
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", os.devnull, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@slow_to_compile  # no backend makes a difference
def test_a_user_sees_the_types(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import keras_dlkit as dlkit\n"
        "dlkit.optimizers.SAM('sgd', 0.1, every_steps=2)\n"
        "dlkit.citation().upper()\n"
        "dlkit.optimizers.SAM('sgd', roh=0.1)\n"
        "dlkit.callbacks.LotteryTicket('three', 2)\n"
        "dlkit.ops.sample_beta(alpha='a', shape=(2,), seed=None)\n"
        "dlkit.layers.MixUp(probability='often')\n"
    )
    done = mypy(str(script))
    lines = [
        line.split(":")[1]
        for line in done.stdout.splitlines()
        if "script.py" in line and "error" in line
    ]
    assert lines == ["4", "5", "6", "7"], done.stdout
