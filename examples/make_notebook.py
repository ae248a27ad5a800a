"""
Title: The quickstart as a notebook
Author: the keras_dlkit developers
Date created: 2026/11/25
Last modified: 2026/11/25
Description: Writes `quickstart.ipynb` from `quickstart.py`.
Accelerator: None

The script is the source. Its blocks of prose become Markdown cells, the code
between them code cells; the command line of its last block gives way to the
cells below. The notebook is committed without outputs, and a test fails if it
is not what this prints.

```bash
python examples/make_notebook.py
jupyter execute examples/quickstart.ipynb  # from pip install ".[notebook]"
```
"""

import ast
import json
import pathlib

HERE = pathlib.Path(__file__).parent
NOTEBOOK = HERE / "quickstart.ipynb"
COMMAND_LINE = "import argparse\n"

INSTALL = """\
It needs `pip install "keras_dlkit[examples,tensorflow]"`; or `jax`, or `torch`,
and `KERAS_BACKEND` set to it before the first cell."""

RUN = [
    (
        "markdown",
        """\
## Run it

One seed here, which takes about a minute on two CPU cores. The script takes
three, and has a spread to show.""",
    ),
    (
        "code",
        """\
noise = 0.4
data = split("digits", train_size=2000)
runs = train_all(data, noise, seeds=1, epochs=20)""",
    ),
    (
        "code",
        """\
%matplotlib inline
from IPython.display import Markdown

Markdown(report(runs, noise, seeds=1, test_size=len(data.test[0])))""",
    ),
    ("code", "plot_accuracies(runs, noise)"),
    ("code", "plot_curves(runs, noise)"),
    ("code", "plot_blends(*data.train)"),
]


def is_prose(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def cells_of(source):
    """`(kind, text)` of each block of prose, and of the code after it."""
    lines = source.splitlines()
    prose = [node for node in ast.parse(source).body if is_prose(node)]
    ends = [node.lineno - 1 for node in prose[1:]] + [len(lines)]
    for node, end in zip(prose, ends):
        yield "markdown", node.value.value.strip()
        code = "\n".join(lines[node.end_lineno : end]).strip()
        if code:
            yield "code", code.removeprefix(COMMAND_LINE)


def introduction(docstring):
    """The title and the text, without the other fields and the commands."""
    header, text = docstring.split("\n\n", 1)
    title = header.split("\n")[0].removeprefix("Title: ")
    return f"# {title}\n\n{text.split('```')[0].strip()}\n\n{INSTALL}"


def cells():
    source = (HERE / "quickstart.py").read_text(encoding="utf-8")
    (_, docstring), *others = cells_of(source)
    begin = others.index(("markdown", "## Run it"))
    return [("markdown", introduction(docstring)), *others[:begin], *RUN]


def notebook():
    """The notebook in the form of its files, nbformat 4.5."""
    content = []
    for index, (kind, text) in enumerate(cells()):
        cell = {"cell_type": kind, "id": f"cell-{index}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        content.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    return {
        "cells": content,
        "metadata": {
            "kernelspec": kernel,
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def text():
    return json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(text(), encoding="utf-8")
    print(NOTEBOOK)
