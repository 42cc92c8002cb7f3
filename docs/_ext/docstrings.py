"""How autodoc reads the docstrings: what of them is Markdown, what is not told, and under which names.

Docstrings are reStructuredText. Those of environments are laid out as Gymnasium's are, with headings, tables and code
in Markdown, which a terminal shows as they stand and the site as what they mean.
"""

import re
from typing import Any

from docutils.nodes import Element, Text
from public_names import is_ours, public_classes, signature_of
from sphinx.addnodes import desc_annotation
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

# Bases that tell a reader nothing
_PLAIN_BASES = {"ABC", "Generic", "object"}


def told_bases(bases: tuple[Any, ...]) -> list[Any]:
    """Direct bases, in the place of an internal one its own."""
    told: list[Any] = []
    for base in bases:
        internal = isinstance(base, type) and is_ours(base) and base not in public_classes()
        told += told_bases(base.__bases__) if internal else [base]
    return [base for base in dict.fromkeys(told) if getattr(base, "__name__", "") not in _PLAIN_BASES]


def from_markdown(lines: list[str]) -> list[str]:
    """Headings, tables and fenced code of Markdown as reStructuredText."""
    told: list[str] = []
    in_code = in_table = False
    for line in lines:
        text = line.strip()
        if text.startswith("```"):
            in_code = not in_code
            told += [f".. code-block:: {text[3:]}", ""] if in_code else [""]
        elif in_code:
            told.append(f"    {line}")
        elif text.startswith("## "):
            told += [f".. rubric:: {text[3:]}", ""]
        elif re.fullmatch(r"\|( --- \|)+", text):
            pass
        elif text.startswith("| "):
            told += [] if in_table else [".. list-table::", "    :header-rows: 1", ""]
            cells = [cell.strip() for cell in text[1:-1].split(" | ")]
            told += [f"    {' ' if number else '*'} - {cell}" for number, cell in enumerate(cells)]
        else:
            told.append(line)
        in_table = text.startswith("| ")
    return told


def read_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = from_markdown(lines)


def read_bases(app: Sphinx, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    bases[:] = told_bases(tuple(bases))


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a named tuple, which are told as its arguments."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def read_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """Arguments of a single environment, whose class has ``**kwargs``."""
    if what == "class" and signature == "(**kwargs)":
        return stringify_signature(signature_of(obj), show_annotation=False, show_return_annotation=False), returned
    return None


def read_types(app: Sphinx, domain: str, objtype: str, content: Element) -> None:
    """Names of types that annotations have lost, and no empty line of bases."""
    for annotations in app.env.current_document.autodoc_annotations.values():
        annotations.update({argument: shorten(text) for argument, text in annotations.items()})
    for annotation in list(content.parent.findall(desc_annotation)):
        text = annotation.astext()
        if shorten(text) != text:
            annotation.clear()
            annotation += Text(shorten(text))
    for paragraph in [one for one in content.children if one.astext().strip() == "Bases:"]:
        content.remove(paragraph)


def shorten(annotation: str) -> str:
    """``NDArray[float64]`` as NumPy calls it, and ``Self``."""
    annotation = re.sub(
        r"([~\w.]*\b)ndarray\[tuple\[[~\w.]*\bAny, \.\.\.\], [~\w.]*\bdtype\[([^\[\]]*)\]\]",
        r"\1NDArray[\2]",
        annotation,
    )
    return re.sub(r"~?sb3_laplace\.[\w.]*\.Self\w+", "~typing.Self", annotation)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", read_signature)
    app.connect("autodoc-process-bases", read_bases)
    app.connect("autodoc-skip-member", skip_member)
    # Before autodoc puts them beside the arguments
    app.connect("object-description-transform", read_types, priority=400)
    return {"parallel_read_safe": True}
