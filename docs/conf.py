"""Sphinx builds the documentation of this folder: ``make docs``.

A warning is an error there. Beside what Sphinx warns of by itself, ``_ext/checks.py`` warns of a public name that is
in no page of the reference or has no docstring, of an argument that its docstring does not tell, and of a link to a
file that is no page. ``_ext/docstrings.py`` says how docstrings are read.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
sys.path[:0] = [str(ROOT), str(ROOT / "envs"), str(FOLDER / "_ext")]

import sb3_laplace  # noqa: E402

project = "sb3-laplace"
author = "The sb3-laplace developers"
project_copyright = f"2026, {author}"
version = release = sb3_laplace.__version__

# Earlier ones, which Python 3.10 has, lack what _ext uses
needs_sphinx = "9.0"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "docstrings",
    "checks",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

# -- pages ----------------------------------------------------------------------------------------------------
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# The tutorials' results are in the notebooks, `make tutorials` makes them anew
nb_execution_mode = "off"
# "auto" is to be copied as it stands
smartquotes = False
copybutton_exclude = ".linenos, .gp, .go"
suppress_warnings = ["mystnb.unknown_mime_type"]

# -- reference ------------------------------------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
# One argument a line where all do not fit into one
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
default_role = "literal"
nitpicky = True
# What Python and other packages document
_OTHERS = (
    r"abc|argparse|collections|io|os|pathlib|typing|"
    r"gym|gymnasium|matplotlib|mujoco|np|numpy|optuna|pandas|sb3_contrib|stable_baselines3|th|torch"
)
nitpick_ignore_regex = [
    ("py:.*", rf"({_OTHERS})\..*"),
    # Names as annotations have them that are not evaluated, and variables that stand for a class itself
    ("py:class", r"BaseCallback|VecEnv|VectorEnv|SampleTask|spaces\.\w+|sb3_laplace\..*\.(Self\w+|Act)"),
]

# -- site -----------------------------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"sb3-laplace {version}"
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
