"""Which papers a part comes from: `@cites` says it beside the part."""

import re
from collections.abc import Callable
from typing import Any
from typing import NamedTuple
from typing import TypeVar

# A class or function, which comes out as the type it went in.
Part = TypeVar("Part")

# What `@cites` adds to a class or function.
ATTRIBUTE = "__papers__"


class Paper(NamedTuple):
    """A paper, with what its BibTeX entry needs."""

    title: str
    # As in BibTeX: "First Last and First Last", accents in TeX.
    author: str
    year: int
    # The conference, or the journal; neither for a preprint.
    venue: str = ""
    journal: str = ""
    arxiv: str = ""
    doi: str = ""

    @property
    def key(self):
        """As Google Scholar has them: `foret2021sharpness`."""
        last = self.author.split(" and ")[0].split()[-1]
        words = re.findall(r"[a-z]+", self.title.lower())
        word = next(w for w in words if w not in ("a", "an", "the", "to"))
        return f"{re.sub('[^a-z]', '', last.lower())}{self.year}{word}"

    def bibtex(self):
        fields = {
            # Two pairs of braces, so that styles leave the capitals alone.
            "title": f"{{{self.title}}}",
            "author": self.author,
            "booktitle": self.venue,
            "journal": self.journal,
            "year": str(self.year),
            "doi": self.doi,
            "eprint": self.arxiv,
            "archiveprefix": "arXiv" if self.arxiv else "",
        }
        lines = [f"  {k} = {{{v}}}," for k, v in fields.items() if v]
        return "\n".join([f"@{self._kind}{{{self.key},", *lines, "}"])

    @property
    def _kind(self):
        if self.venue:
            return "inproceedings"
        return "article" if self.journal else "misc"


def cites(
    *papers: Paper, when: Callable[[Any], bool] | None = None
) -> Callable[[Part], Part]:
    """A decorator: the part comes from these papers.

    Args:
        *papers: The main one first.
        when: `None`, or a function of an object of the class: whether it uses
            what is in the papers, set as it is. The class alone does not
            cite them then.
    """

    def decorate(part: Part) -> Part:
        others = vars(part).get(ATTRIBUTE, ())
        setattr(part, ATTRIBUTE, ((papers, when), *others))
        return part

    return decorate


def papers_of(value):
    """The papers of a class and its bases, of a function, or of an object."""
    is_class = isinstance(value, type)
    if hasattr(value, "__name__") and not is_class:
        sources = [value]
    else:
        sources = reversed((value if is_class else type(value)).__mro__)
    return [
        paper
        for source in sources
        for papers, when in vars(source).get(ATTRIBUTE, ())
        if when is None or (not is_class and when(value))
        for paper in papers
    ]
