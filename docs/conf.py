"""Sphinx builds the documentation of this folder: ``make docs``.

A warning is an error there, and three things are made warnings that Sphinx does not look at by itself: a public name that
is in no page of the reference or has no docstring, an argument that its docstring does not tell, and a link to a file of
the repository that does not exist.
"""

import importlib
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "envs")]

import sb3_laplace  # noqa: E402

project = "sb3-laplace"
author = "The sb3-laplace developers"
project_copyright = f"2026, {author}"
version = release = sb3_laplace.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "results", "**.ipynb_checkpoints"]

# -- pages ----------------------------------------------------------------------------------------------------
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The tutorials' results are in the notebooks, `make tutorials` makes them anew
nb_execution_mode = "off"
copybutton_exclude = ".linenos, .gp, .go"
suppress_warnings = ["mystnb.unknown_mime_type"]

# -- reference ------------------------------------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
default_role = "literal"
nitpicky = True
# What other packages document
_OTHERS = r"(torch|th|np|numpy|gym|gymnasium|stable_baselines3|sb3_contrib|matplotlib|pandas|mujoco|optuna|collections)"
nitpick_ignore_regex = [("py:.*", rf"{_OTHERS}\..*")]

# -- site -----------------------------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"sb3-laplace {version}"
html_static_path = ["_static"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False

