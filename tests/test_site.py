"""The site shows every public name, and its build fails where it does not."""

import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Of `pip install -e ".[docs]"`, as `make docs` and `tox -e docs` have it.
needs_mkdocs = pytest.mark.skipif(
    not importlib.util.find_spec("mkdocs"), reason="needs the extra `docs`"
)


def public_names():
    """As the `__init__` files import them, without an import."""
    names = set()
    for init in (ROOT / "keras_dlkit").glob("**/__init__.py"):
        module = ".".join(init.parent.relative_to(ROOT).parts)
        if "._" in module:
            continue
        imported = re.findall(
            r"^from keras_dlkit\.\S+ import \(?\s*(\w+)",
            init.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        names |= {f"{module}.{name}" for name in imported}
    return names


def test_every_public_name_is_on_one_page():
    shown = [
        name
        for page in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
    ]
    assert len(shown) == len(set(shown))
    assert set(shown) == public_names()


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        path = page.relative_to(ROOT / "docs").as_posix()
        assert re.search(rf": {re.escape(path)}$", navigation, re.M), path


def test_results_are_the_page_that_reproduce_writes():
    specification = importlib.util.spec_from_file_location(
        "reproduce", ROOT / "benchmarks" / "reproduce.py"
    )
    reproduce = importlib.util.module_from_spec(specification)
    sys.modules["reproduce"] = reproduce  # as its dataclass wants
    specification.loader.exec_module(reproduce)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == reproduce.page()
    for section in reproduce.SECTIONS:
        assert (ROOT / "benchmarks" / section.script).exists(), section


def build(folder):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def project(tmp_path):
    for name in ("docs", "keras_dlkit"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "README.md", tmp_path / "benchmarks")
    return tmp_path


@needs_mkdocs
def test_the_site(project):
    done = build(project)
    assert done.returncode == 0, done.stderr
    pages = {
        path.relative_to(project / "site").as_posix(): path.read_text("utf-8")
        for path in (project / "site").rglob("*.html")
    }
    sam = pages["parts/sam/index.html"]
    assert "<math" in sam and "<strong>State:</strong>" in sam
    # A function that its module has the name of.
    attach = pages["attach/index.html"]
    assert "SAM by hand" in pages["costs/index.html"]
    assert 'id="keras_dlkit.attach"' in attach and "Parameters:" in attach
    for name, page in pages.items():
        # Readable without a network: nothing is fetched from elsewhere.
        assert not re.search(r'<(script|link)[^>]+(src|href)="http', page), name
        assert not re.search(r"\\[(\[]", page), name
        # A relation, not a letter, and no point or comma that begins a line.
        assert "<mi>&#x0007E;</mi>" not in page, name
        ends = len(re.findall("</math>[.,;:)]", page))
        assert ends == page.count('class="unbroken"'), name


@needs_mkdocs
@pytest.mark.parametrize(
    ("page", "old", "new", "message"),
    [
        ("parts/mix_up.md", "::: keras_dlkit.layers.MixUp", "", "layers.MixUp"),
        ("parts/sam.md", "(look_sam.md)", "(look_sams.md)", "look_sams.md"),
        ("parts/sam.md", "(look_sam.md)", "(look_sam.md#no)", "anchor '#no'"),
        ("bases.md", "# Make a part", r"\(\nosuch x\)", "nosuch"),
        ("bases.md", "layers.BatchPart", "layers.BatchParts", "BatchParts"),
    ],
)
def test_what_makes_the_build_fail(project, page, old, new, message):
    path = project / "docs" / page
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    done = build(project)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout


@needs_mkdocs
def test_a_page_outside_of_the_navigation_makes_the_build_fail(project):
    (project / "docs" / "more.md").write_text("# More")
    done = build(project)
    assert done.returncode != 0 and "more.md" in done.stderr
