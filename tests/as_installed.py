"""Tests the installed package, with the tests of a source distribution.

```bash
pip install build ".[test,torch]"
KERAS_BACKEND=torch python tests/as_installed.py -m "not slow"
```

The distribution is built, compared with what is in the repository, and
unpacked without its `keras_dlkit`: its tests find the package where pip has
put it. All arguments are those of pytest.
"""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).parents[1]


def unpacked(folder):
    """The folder of a source distribution that is built in `folder`."""
    build = [sys.executable, "-m", "build", "--sdist", "--outdir", folder]
    subprocess.run([*build, ROOT], check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def check_complete(sdist):
    """Nothing that is in the repository has been left out."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    )
    paths = [p for p in listed.stdout.splitlines() if (ROOT / p).exists()]
    missing = [path for path in paths if not (sdist / path).exists()]
    if missing:
        sys.exit(f"MANIFEST.in leaves out {', '.join(missing)}")
    print(f"{len(paths)} files of the repository are in the sdist")


def check_installed(folder):
    """It is imported from where pip has put it, with its mark of types."""
    script = "import keras_dlkit; print(keras_dlkit.__path__[0])"
    printed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    place = pathlib.Path(printed.strip())
    if "site-packages" not in place.parts:
        sys.exit(f"The package must be installed, not editable. Found: {place}")
    if not (place / "py.typed").exists():
        sys.exit(f"The wheel has no py.typed: {place}")
    print(f"tests of {place}", flush=True)


def main(arguments):
    with tempfile.TemporaryDirectory() as folder:
        sdist = unpacked(pathlib.Path(folder))
        check_complete(sdist)
        shutil.rmtree(sdist / "keras_dlkit")
        check_installed(sdist)
        # What reads the source has been tested beside it.
        source = ["test_package.py", "test_private_keras.py", "test_site.py"]
        ignored = [f"--ignore=tests/{name}" for name in source]
        pytest = [sys.executable, "-m", "pytest", *ignored, *arguments]
        return subprocess.run(pytest, cwd=sdist).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
