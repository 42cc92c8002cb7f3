"""What the built reference must hold, beyond what Sphinx looks at: every public name, its docstring, its arguments.

And no link to a file of the repository: the site has pages, and no files beside them. ``sphinx-build
--fail-on-warning`` fails where this is not so.
"""

import inspect
import re
from collections.abc import Collection, Iterator
from typing import Any

from docutils.nodes import document
from public_names import PUBLIC_MODULES, is_ours, public_classes, public_names, signature_of
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
# An argument is told as a field, or in the list that Gymnasium's docstrings have
_TOLD = re.compile(r"^ *:param (\w+):|^ *- ((?:`\w+`(?:, )?)+):", re.MULTILINE)
# Or with another class, which a docstring names in one of these ways
_ELSEWHERE = re.compile(r"[Aa]s (?:in|for) `(\w+)`|`(\w+)` describes")


def missing_names(documented: Collection[str]) -> Iterator[str]:
    """Public names that the reference does not hold.

    :param documented: full names of what it holds
    """
    for module, name in public_names():
        obj = getattr(module, name)
        # What two modules export is told once
        places = [one.__name__ for one in PUBLIC_MODULES if getattr(one, name, None) is obj]
        if not any(f"{place}.{name}" in documented for place in places):
            yield f"{module.__name__}.{name} is in no page of the reference"


def missing_docstrings() -> Iterator[str]:
    """Public classes and functions without a docstring, and arguments, of methods too, that none tells."""
    for module, name in public_names():
        yield from untold(getattr(module, name), f"{module.__name__}.{name}")


def untold(obj: Any, name: str) -> Iterator[str]:
    """What is not told of one public object.

    :param obj: a class or a function; of anything else the reference's pages tell
    :param name: its name
    """
    if not (inspect.isclass(obj) or inspect.isfunction(obj)):
        return
    if not obj.__doc__:
        yield f"{name} has no docstring"
    if inspect.isfunction(obj):
        yield from _untold_arguments(obj, name, [obj])
        return
    bases = [base for base in inspect.getmro(obj) if is_ours(base)]
    maker = next(base for base in inspect.getmro(obj) if {"__init__", "__new__"} & vars(base).keys())
    if is_ours(maker):
        yield from _untold_arguments(obj, name, bases)
    shown = [base for base in bases if base is obj or base not in public_classes()]
    for method in sorted({method for base in shown for method in vars(base)}):
        function = getattr(obj, method)
        if not method.startswith("_") and (inspect.isfunction(function) or inspect.ismethod(function)):
            overridden = [vars(base)[method] for base in bases if method in vars(base)]
            yield from _untold_arguments(function, f"{name}.{method}", overridden)


def _untold_arguments(called: Any, name: str, told: list[Any]) -> Iterator[str]:
    """Arguments that no docstring of these objects tells: one's own, and those of what it inherits from."""
    docstrings = [one.__doc__ for one in told if one.__doc__]
    known = {argument for text in docstrings for argument in _told(text)}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for argument, parameter in signature_of(called).parameters.items():
        # A method that has no docstring is not in the reference: it is the parent's
        if docstrings and argument not in known | {"self"} and parameter.kind not in variable:
            yield f"{name} does not tell its argument {argument}"


def _told(docstring: str) -> set[str]:
    """Arguments that a docstring tells, or that of a class to which it refers."""
    told = {argument for groups in _TOLD.findall(docstring) for argument in re.findall(r"\w+", " ".join(groups))}
    elsewhere = {name for groups in _ELSEWHERE.findall(docstring) for name in groups if name}
    for module, name in public_names():
        if name in elsewhere:
            told |= _told(getattr(module, name).__doc__)
    return told


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    for message in (*missing_names(env.domains.python_domain.objects), *missing_docstrings()):
        LOGGER.warning(message, type="reference")


def check_links(app: Sphinx, doctree: document) -> None:
    """A link to a file of the repository, which only a reader of the repository could want: name it as code."""
    for node in doctree.findall(download_reference):
        # Not of the role {download}, which asks for it
        if "myst" in node[0]["classes"]:
            message = f"link to {node['reftarget']}, which is no page: name the file as code, or use {{download}}"
            LOGGER.warning(message, location=node, type="link")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-check-consistency", check_reference)
    app.connect("doctree-read", check_links)
    return {"parallel_read_safe": True}
