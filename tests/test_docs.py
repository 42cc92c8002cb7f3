"""The documentation's site builds without a warning, and what its checks warn of."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts)]
# What `pip install -e .[docs]` brings: not the lowest versions, and Python 3.10 has an older Sphinx only
HAS_TOOLS = sys.version_info >= (3, 11) and all(
    importlib.util.find_spec(name) for name in ("sphinx", "furo", "myst_nb", "sphinx_copybutton")
)
needs_tools = pytest.mark.skipif(not HAS_TOOLS, reason="needs the extra docs, and Python 3.11")
# What a reader types, who has not read the docs yet
SEARCHES = ("own environment", "overconfident", "GRU", "RecurrentPPO")
PUBLIC = (
    "sb3_laplace.LaplaceRecurrentPPO",
    "sb3_laplace.plot_belief",
    "sb3_laplace.cores.GRU",
    "sb3_laplace_envs.Trial",
)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch):
    """The extension that warns, as a module."""
    monkeypatch.syspath_prepend(DOCS / "_ext")
    import checks

    yield checks
    for name in ("checks", "public_names"):
        sys.modules.pop(name, None)


@needs_tools
def test_the_site_builds_without_a_warning_and_can_be_searched(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", DOCS, tmp_path)
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr

    from sphinx.search.en import SearchEnglish

    language = SearchEnglish({})
    index = json.loads((tmp_path / "searchindex.js").read_text("utf-8").removeprefix("Search.setIndex(").rstrip(";)"))
    for search in SEARCHES:
        pages = set(range(len(index["docnames"])))
        for word in search.split():
            if word not in language.stopwords:
                stem = language.stem(word.lower())
                places = [index[part].get(stem, []) for part in ("terms", "titleterms")]
                pages &= {page for one in places for page in ([one] if isinstance(one, int) else one)}
        assert pages, search
    reference = "".join(page.read_text("utf-8") for page in (tmp_path / "reference").glob("*.html"))
    assert [name for name in PUBLIC if f'id="{name}"' not in reference] == []


@needs_tools
def test_a_public_name_that_is_not_in_the_reference_is_found(checks) -> None:
    documented = {f"{module.__name__}.{name}" for module, name in checks.public_names()}
    assert documented.issuperset(PUBLIC)
    assert list(checks.missing_names(documented)) == []
    # Two modules export it
    assert list(checks.missing_names(documented - {"sb3_laplace.cores.Core"})) == []
    (message,) = checks.missing_names(documented - {"sb3_laplace.plot_belief"})
    assert message == "sb3_laplace.plot_belief is in no page of the reference"


@needs_tools
def test_what_a_docstring_does_not_tell_is_found(checks) -> None:
    def told(trace: int, *rest: int, seed: int = 0, **more: int) -> None:
        """Told.

        :param trace: the trace
        :param seed: the seed
        """

    def half_told(trace: int, seed: int = 0) -> None:
        """A trace: of a seed.

        :param trace: of which seed is said nothing
        """

    def not_told() -> None: ...

    class Listed:
        """As Gymnasium's are, and as in `DirichletBanditEnv`.

        - `first`, `second`: two of them
        - third: not told
        """

        def __init__(self, first: int, second: int, third: int, n_arms: int) -> None: ...

        def method(self, fourth: int) -> None:
            """Does nothing."""

    Listed.__module__ = "sb3_laplace"
    found = [list(checks.untold(one, "name")) for one in (told, half_told, not_told, Listed, 1.0)]
    assert found == [
        [],
        ["name does not tell its argument seed"],
        ["name has no docstring"],
        ["name does not tell its argument third", "name.method does not tell its argument fourth"],
        [],
    ]


@needs_tools
@pytest.mark.filterwarnings("ignore:'myst_parser")
def test_links_to_what_is_no_page_are_found(checks, tmp_path: Path) -> None:
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    (tmp_path / "docs").mkdir()
    (tmp_path / "file.yml").touch()
    (tmp_path / "docs" / "index.md").write_text(
        "# Title\n\n[a](../file.yml) [b](nothing.md) [c](#title) {download}`d <../file.yml>`\n"
    )
    paths = [str(tmp_path / name) for name in ("docs", "out", "doctrees")]
    warnings = StringIO()
    with patch_docutils(), docutils_namespace():
        settings = {"extensions": ["myst_parser"], "myst_heading_anchors": 1}
        app = Sphinx(paths[0], None, *paths[1:], "dummy", settings, status=None, warning=warnings)
        app.connect("doctree-read", checks.check_links)
        app.build()
    found = re.sub(r"\x1b\[[0-9;]*m", "", warnings.getvalue())
    assert found.count("WARNING") == 2
    assert "link to ../file.yml, which is no page" in found
    assert "'nothing.md'" in found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_picture_is_told_in_words(page: Path) -> None:
    text = page.read_text("utf-8")
    assert re.findall(r"!\[\s*\]\([^)]*\)", text) == []
    assert [tag for tag in re.findall(r"<img\b[^>]*>", text) if not re.search(r"""\balt=["'][^"']""", tag)] == []
    blocks = re.findall(r"^(?:```+|:::+)\{(?:figure|image)\}.*?^(?:```+|:::+)", text, re.MULTILINE | re.DOTALL)
    assert [block for block in blocks if not re.search(r"^:alt: *\S", block, re.MULTILINE)] == []


def test_links_of_the_readme_lead_to_files() -> None:
    """The site's pages are checked when it is built; the README is none of them."""
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text("utf-8"))
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


def test_the_version_is_told_alike() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "sb3_laplace" / "version.py").read_text("utf-8"))
    assert version is not None
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version = {{{version[1]}}}" in (DOCS / "citing.md").read_text("utf-8")
