"""README, docs and the notebooks' findings: rendered from templates, short, with every result computed, and no dead link."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from jinja2 import UndefinedError

from parlib.cache import ROOT
from parlib.cli.plan import plan
from parlib.experiments.registry import EXPERIMENTS, check
from parlib.report import numbers, prose

TEXTS = [path for _, path in sorted(prose.targets().items())]
TEMPLATES = sorted(prose.TEMPLATES.rglob("*.md"))
# A version of Python, arXiv's id, a licence, and what a user of CleanCLIP's repository reports.
ALLOWED = {"3.11", "2412.00727", "4.0", "5.7", "97.7"}
_WIDEST = 100  # characters of a line of code: GitHub shows no more without scrolling


def _named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("name", sorted(prose.targets()))
def test_texts_are_rendered_from_their_templates(name):
    path = prose.targets()[name]
    remedy = "write it anew with: python -m parlib.cli.publish --texts"
    assert path.read_text() == prose.render(name), f"{_named(path)} is not what its template says; {remedy}"


def test_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.encode()) <= 8000
    assert text.index("make reproduce") < text.index("![") < text.index("## ")


def test_readme_fits_githubs_width():
    text = (ROOT / "README.md").read_text()
    assert max(line.count("|") - 1 for line in text.splitlines() if line.startswith("|")) <= 5
    assert max(map(len, _code(text))) <= 95


@pytest.mark.parametrize("path", TEXTS, ids=_named)
def test_code_fits_the_page(path):
    assert [line for line in _code(path.read_text()) if len(line) > _WIDEST] == []


def _code(text: str) -> list[str]:
    """The lines of code blocks, fenced or indented."""
    fenced = [line for block in re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    return fenced + [line for line in text.splitlines() if re.match(r" {4}", line)]


@pytest.mark.parametrize("path", TEMPLATES, ids=_named)
def test_no_result_is_typed(path):
    """A decimal outside {{ }}, {% %} and code is a number that nobody computed."""
    text = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    text = re.sub(r"^ {4}\s*\S.*$|`[^`\n]*`|https?://\S+", "", text, flags=re.M)
    assert set(re.findall(r"\d+\.\d+", text)) <= ALLOWED


@pytest.mark.parametrize("notebook", EXPERIMENTS)
def test_findings_of_a_notebook_are_short_bullets_that_end_with_the_limits(notebook):
    text = prose.render(f"notebooks/{notebook}.md")
    bullets = [line for line in text.splitlines() if line.startswith("- ")]
    assert len([word for word in text.split() if word != "-"]) <= 120
    assert len(bullets) >= 3
    assert bullets[-1].startswith("- Limits")


@pytest.mark.parametrize("notebook", EXPERIMENTS)
def test_findings_stored_in_a_notebook_are_those_of_its_template(notebook):
    (said,) = prose.closings(nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", 4))
    assert said["text/markdown"].endswith(f"-->\n{prose.render(f'notebooks/{notebook}.md')}")


@pytest.mark.parametrize("path", TEXTS, ids=_named)
def test_links_point_at_files_and_headings_that_exist(path):
    dead = [link for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()) if not link.startswith("http") and _is_dead(link, path)]
    assert dead == []


def _is_dead(link: str, path: Path) -> bool:
    name, _, heading = link.partition("#")
    file = (path.parent / name).resolve() if name else path
    return not file.exists() or bool(heading and heading not in _anchors(file.read_text()))


def _anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("notebook", EXPERIMENTS)
def test_links_of_findings_exist(notebook):
    home = ROOT / "notebooks" / f"{notebook}.ipynb"
    links = re.findall(r"\]\(([^)\s]+)\)", prose.render(f"notebooks/{notebook}.md"))
    assert not [link for link in links if not link.startswith("http") and _is_dead(link, home)]


def test_unknown_run_raises():
    with pytest.raises(FileNotFoundError, match="no_such_run"):
        numbers.run("02_clean/no_such_run")


def test_rows_that_nobody_published_raise():
    with pytest.raises(ValueError, match="no_such_method"):
        numbers.one("asr", method="no_such_method")


def test_unknown_number_raises(tmp_path, monkeypatch):
    (tmp_path / "text.md").write_text('{{ run("02_clean/par_badnet_stripes_s0").no_such_number }}')
    monkeypatch.setattr(prose, "TEMPLATES", tmp_path)
    with pytest.raises(UndefinedError, match="no_such_number"):
        prose.render("text.md")


def test_numbers_are_those_of_the_record():
    found = numbers.run("02_clean/par_badnet_stripes_s0")
    assert (found.asr, found.hits, found.attack_success_rate_n) == (0.00100604, 2, 1988)
    assert (found.ca, found.poisoned_ca, found.poisoned_asr) == (0.935, 0.9575, 0.976358)
    assert numbers.one("cost", run="02_clean/par_badnet_stripes_s0") == pytest.approx(0.0225)
    assert numbers.one("asr", run="02_clean/par_badnet_stripes_s0") == found.asr
    assert numbers.cell(run="02_clean/par_badnet_stripes_s0") == "0.001 (0.935)"
    assert numbers.span("ca", run=["02_clean/par_badnet_stripes_s0", "02_clean/par_badnet_stripes_s1"]).startswith("0.9")


def test_a_half_is_rounded_up():
    assert numbers.FILTERS["points"](0.0145) == "1.5"


def test_a_constant_is_read_without_importing_its_module():
    assert prose.constant("parlib/report/numbers.py", "_FORMS")["f3"] == ".3f"
    with pytest.raises(ValueError, match="NO_SUCH"):
        prose.constant("parlib/report/prose.py", "NO_SUCH")


_VALUE = r"""(?:'[^']*'|""|[^\s'"`]+)"""
_PAPERMILL = re.compile(rf"papermill\s+notebooks/(\w+)\.ipynb\s+\S+((?:[\s\\]+(?:-p\s+\w+\s+{_VALUE}|-y\s+'[^']*'))*)")


@pytest.mark.parametrize("path", TEXTS, ids=_named)
def test_papermill_commands_build_on_what_make_reproduce_made(path):
    made = {run.id for run in plan(ROOT / "params" / "small" / "scarce.yaml")}
    for notebook, options in _PAPERMILL.findall(path.read_text()):
        values = {name: yaml.safe_load(value) for name, value in re.findall(rf"-p\s+(\w+)\s+({_VALUE})", options)}
        for text in re.findall(r"-y\s+'([^']*)'", options):
            values |= yaml.safe_load(text)
        run = check(notebook, values)
        assert run.scale == "paper" or {need.id for need in run.needs()} <= made, f"{notebook} {values}"
