"""What README and documentation say can be typed, and what they draw is there."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from tests.test_rooms import ROOMS
from ubmd.arguments import quoted
from ubmd.cli import app
from ubmd.cli.command import COMMANDS, find

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def named(page: Path) -> str:
    """A page's name among the tests."""
    return str(page.relative_to(ROOT))


def command_lines(page: Path) -> list[str]:
    """Those of ``ubmd`` in a page's blocks of shell code, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line[line.index("ubmd ") :] for line in lines if re.match(r"(\w+=\S+ |exec )*ubmd \w", line)]


def test_pages_show_commands() -> None:
    assert sum(len(command_lines(page)) for page in PAGES) > 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if command_lines(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_command_lines_are_right(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        if "class TwoHops" in code:  # the page names it as a module of the working directory
            (tmp_path / "my_model.py").write_text(code)
            monkeypatch.syspath_prepend(tmp_path)
    for line in command_lines(page):
        _, name, *words = shlex.split(line, comments=True)
        if name not in COMMANDS or "--help" in words:
            continue
        overrides = quoted([word for word in words if "=" in word])
        if any(word.startswith("continue=") for word in overrides):  # whose words are in a folder
            begun = {"learn": ["experiment=ala2_demo"], "md": ["potential=x", "system=ala2"]}
            overrides = [*begun[name], *(word for word in overrides if not word.startswith("continue="))]
        flags = {word for word in words if "=" not in word}
        assert flags <= {"-m", "--cfg", "job"}, line
        with app.open_hydra() as hydra:  # of a sweep the first job
            app.compose_checked(hydra, find(name), app.sweep_points(app.parse(hydra, overrides))[0])


def test_the_drawing_shows_every_room_in_its_place() -> None:
    drawn = runpy.run_path(str(ROOT / "scripts" / "docs" / "drawings.py"))["ROOMS"]
    assert [name for name, _ in drawn] == ["testing", *ROOMS, "ground floor"]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=named)
def test_links_of_pages_beside_the_documentation_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert all((ROOT / link).is_file() for link in links), links
