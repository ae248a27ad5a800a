"""What the build of the site adds to MkDocs, and what makes it fail.

- Formulas become MathML, which browsers draw themselves: no script, no network.
- A public name without a place in the site is an error. (MkDocs itself is
  strict about links and pages; see `validation` in mkdocs.yml.)
- Names as `keras_dlkit.attach` in running text become links, and so does the
  file of the measured costs, which is a page of the site.
- The sections of docstrings that the Google style does not know become lists.
"""

import ast
import html
import pathlib
import re
import textwrap

import griffe
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "keras_dlkit"

# With the point or comma after it, which must not begin a line.
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>([.,;:)]*)',
    re.DOTALL,
)
# As converted, and as browsers space it well: a relation, and norms.
SYMBOLS = {
    "<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>",
    ">&#x0007C;</mo>": ' lspace="0" rspace="0">&#x0007C;</mo>',
    ">&#x02016;</mo>": ' lspace="0" rspace="0">&#x02016;</mo>',
}
ANCHOR = re.compile(rf'<h\d id="({PACKAGE}[\w.]*)"')
HEADING = re.compile(r'(<span class="doc doc-object-name[^>]*>)([\w.]+)<')
NAME = re.compile(rf"<code>({PACKAGE}(?:\.\w+)+)</code>")
FACTS = re.compile(r"^(State|Runs|Cost): ", re.MULTILINE)
REFERENCES = re.compile(r"^References:\n((?: {4}.*\n?|\n)*)", re.M)
RETURNS = re.compile(r"^Returns:\n((?: {4}.*\n?)*)", re.M)
CALL_ARGUMENTS = re.compile(r"^Call arguments:\n((?: {4}.*\n?|\n)*)", re.M)
ARGUMENT = re.compile(r"^(\w[\w, ]*): ", re.MULTILINE)
CONTENTS = "<!-- every public name -->"
COSTS = "benchmarks/README.md"


# The public names.


def public_names():
    """All public names, as the `__init__` files import them."""
    found = {}
    for init in sorted((ROOT / PACKAGE).glob("**/__init__.py")):
        module = ".".join(init.parent.relative_to(ROOT).parts)
        if "._" in module:
            continue
        for node in ast.parse(init.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module != PACKAGE:
                for alias in node.names:
                    found[f"{module}.{alias.name}"] = node.module
    return found


def first_line(name, module):
    """The first line of the docstring of a public name."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.exists():
        path = ROOT / module.replace(".", "/") / "__init__.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if getattr(node, "name", None) == name.rsplit(".", 1)[-1]:
            return (ast.get_docstring(node) or "").split("\n")[0]
    raise PluginError(f"{name} is not defined in {path}")


def check_coverage(documented):
    """Fails for public names that no page shows."""
    missing = sorted(set(public_names()) - set(documented))
    if missing:
        raise PluginError(
            "Each public name must be on a page of docs/, as `::: "
            f"{missing[0]}`. Not there: {', '.join(missing)}"
        )


# Formulas.


def formula(match):
    """One formula as MathML."""
    tex = html.unescape(match[2])
    block = match[1] == "div"
    # A line of its own may be broken; what is written in letters is one word.
    tex = re.sub(r"\\mathrm\{(\w\w+)\}", r"\\operatorname{\1}", tex)
    mathml = convert(tex, display="block" if block else "inline")
    if "\\" in html.unescape(mathml):
        raise PluginError(f"A formula has a command that is not known: {tex}")
    for converted, spaced in SYMBOLS.items():
        mathml = mathml.replace(converted, spaced)
    if block:
        return f'<div class="formula">{mathml}</div>{match[3]}'
    if match[3]:
        return f'<span class="unbroken">{mathml}{match[3]}</span>'
    return mathml


# Docstrings.


class ReadableSections(griffe.Extension):
    """Docstrings as the site shows them."""

    def on_package(self, *, pkg, loader, **kwargs):
        # First, for paths lead through the modules that are replaced.
        loader.resolve_aliases(implicit=True, external=False)
        _prefer_functions(pkg)

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            text = readable(obj.docstring.value)
            if obj.is_class:
                # What `call` returns has no annotation to show.
                text = RETURNS.sub(_titled("Returns"), text)
            obj.docstring.value = text


def _prefer_functions(module):
    """Makes `attach` the function of attach.py, as at run time."""
    for name, member in list(module.members.items()):
        if member.is_alias or not member.is_module:
            continue
        _prefer_functions(member)
        same = member.members.get(name)
        if same and not same.is_alias and same.is_function:
            module.members[name] = griffe.Alias(name, same, parent=module)


def readable(docstring):
    """`State:`, `Runs:`, `Cost:` and sections of our own, as Markdown."""
    docstring = REFERENCES.sub(_titled("References"), docstring)
    docstring = CALL_ARGUMENTS.sub(
        lambda m: "**Call arguments:**\n\n" + _as_list(m[1]) + "\n",
        docstring,
    )
    lines, is_fact = [], False
    for line in docstring.split("\n"):
        if FACTS.match(line):
            is_fact, line = True, FACTS.sub(r"- **\1:** ", line)
        elif not line.strip():
            is_fact = False
        lines.append(
            f"  {line.lstrip()}" if is_fact and line[0] == " " else line
        )
    return "\n".join(lines)


def _titled(title):
    return lambda m: f"**{title}:**\n\n{textwrap.dedent(m[1])}\n"


def _as_list(block):
    block = textwrap.dedent(block).strip("\n")
    lines = ARGUMENT.sub(r"- **`\1`** – ", block).split("\n")
    return (
        "\n".join(
            line if line.startswith("- ") else f"  {line.lstrip()}"
            for line in lines
        )
        + "\n"
    )


# What MkDocs calls.

_documented = set()


def on_pre_build(config):
    _documented.clear()


def on_page_markdown(markdown, page, config, files):
    if f"<!-- {COSTS} -->" in markdown:
        return (ROOT / COSTS).read_text(encoding="utf-8")
    if CONTENTS not in markdown:
        return markdown
    lines, section = [], None
    for name, module in public_names().items():
        folder = name.rpartition(".")[0]
        if folder != section:
            lines += ["", f"## {folder}", ""]
            section = folder
        lines += [
            f"[`{name.rpartition('.')[2]}`][{name}]",
            f": {first_line(name, module)}",
            "",
        ]
    return markdown.replace(CONTENTS, "\n".join(lines))


def on_page_content(html, page, config, files):
    _documented.update(ANCHOR.findall(html))
    html = FORMULA.sub(formula, html)
    # Long names may be broken after their points.
    html = HEADING.sub(lambda m: m[1] + m[2].replace(".", ".<wbr>") + "<", html)
    costs = files.get_file_from_path("costs.md").url_relative_to(page.file)
    html = html.replace(
        f"<code>{COSTS}</code>", f'<a href="{costs}"><code>{COSTS}</code></a>'
    )
    names = public_names()
    return NAME.sub(
        lambda m: (
            f'<autoref identifier="{m[1]}">{m[0]}</autoref>'
            if m[1] in names
            else m[0]
        ),
        html,
    )


def on_env(env, config, files):
    check_coverage(_documented)
