"""What MkDocs does beside rendering pages: pages made from the configurations and the code, equations, drawings."""

from __future__ import annotations

import ast
import html
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import drawings  # noqa: E402

COMMANDS = ("learn", "train", "evaluate", "md", "committee", "label", "serve", "export", "convert")
GROUND_FLOOR = "ground floor"


def on_config(config: Any) -> Any:
    """The rooms in the navigation: every part of the package has a page."""
    (reference,) = [section["Reference"] for section in config.nav if "Reference" in section]
    reference.append({"Rooms": sorted(api_pages())})
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages that are made from other files, and the notebooks."""
    pages = {
        "configuration.md": configuration(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        **api_pages(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts the drawings where a page asks for them, and leads to the notebooks, which are beside the pages here."""
    for name, draw in drawings.DRAWINGS.items():
        markdown = markdown.replace(f"<!-- drawing: {name} -->", draw())
    return markdown.replace("<!-- front door -->", front_door()).replace("](../notebooks/", "](notebooks/")


def front_door() -> str:
    """The rows of a table of the names of ``ubmd``, from where they are imported."""
    tree = ast.parse((ROOT / "ubmd" / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    found = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return "\n".join(
        f"| [`ubmd.{name}`][{path}] | `{path.rpartition('.')[0]}` |" for name, path in sorted(found.items())
    )


def on_page_content(text: str, **_: Any) -> str:
    """Equations as MathML, which browsers draw without a script."""

    def block(match: re.Match[str]) -> str:
        return f'<div class="equation">{_mathml(match[1], "block")}</div>'

    text = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', block, text, flags=re.DOTALL)
    return re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: _mathml(m[1], "inline"), text)


def _mathml(source: str, display: str) -> str:
    latex = html.unescape(source)
    number = ""
    if found := re.search(r"\\tag\{(.*?)\}", latex):
        latex, number = latex.replace(found[0], ""), f'<span class="number">({found[1]})</span>'
    mathml = convert(latex, display=display)  # pyright: ignore[reportArgumentType]
    # it has no bold Greek, and no names of operators
    return mathml.replace("\\arg", "arg") + number


def _comment(text: str) -> tuple[str, str]:
    """The comment that a file begins with, as a sentence or as code where it shows commands; and the rest."""
    lines = text.splitlines()
    package = [line for line in lines[:1] if line.startswith("# @package")]
    lines = lines[len(package) :]
    head: list[str] = []
    while lines and lines[0].startswith("#"):
        head.append(lines.pop(0)[1:].removeprefix(" "))
    parts: list[str] = []
    code: list[str] = []
    for line in head:
        if line.startswith("  "):
            code.append(line[2:])
        else:
            if code:
                parts += ["", "```sh", *code, "```", ""]
                code = []
            parts.append(line)
    if code:
        parts += ["", "```sh", *code, "```"]
    return "\n".join(parts).strip(), "\n".join([*package, *lines]).strip()


def _choices(file: Path) -> list[tuple[str, str]]:
    """The groups that a file's defaults list chooses from, each with the option that it chooses."""
    content = yaml.safe_load(file.read_text())
    entries = [entry for entry in (content or {}).get("defaults", []) if isinstance(entry, dict)]
    return [(str(group).split("@")[0].strip("/"), str(option)) for entry in entries for group, option in entry.items()]


def configuration() -> str:
    """A page with every command, group and option, from ``conf/``."""
    conf = ROOT / "conf"
    out = [(ROOT / "scripts" / "docs" / "configuration.md").read_text(), "## Commands", ""]
    users: dict[str, list[str]] = {}
    chosen: set[str] = set()
    for command in COMMANDS:
        text, body = _comment((conf / f"{command}.yaml").read_text())
        out += [f"### `ubmd {command}`", "", text, "", "```yaml", body, "```", ""]
        for group, option in _choices(conf / f"{command}.yaml"):
            chosen.add(f"{group}={option}")
            users.setdefault(group, []).append(command)
    folders = {str(file.parent.relative_to(conf)) for file in conf.rglob("*/*.yaml")} - {"wandb"}  # no group
    order = [*users, *sorted(folders - users.keys())]
    for group in sorted(folders, key=lambda name: (order.index(name.split("/")[0]), name)):
        out += [f"## `{group}`", ""]
        if group in users:
            out += [f"Group of {', '.join(f'`ubmd {command}`' for command in users[group])}.", ""]
        options = sorted((conf / group).glob("*.yaml"))
        chosen |= {f"{group}/{inner}={option}" for file in options for inner, option in _choices(file)}
        for file in options:
            text, body = _comment(file.read_text())
            name = f"{group}={file.stem}"
            out += [f"### `{name}`{' (default)' if name in chosen else ''}", "", text, ""]
            out += ["```yaml", body, "```", ""] if body else []
    return "\n".join(out)


def api_pages() -> dict[str, str]:
    """A page for each room, with the modules in it; the ground floor's modules share one."""
    package = ROOT / "ubmd"
    pages = {}
    rooms = {path.name: path for path in sorted(package.iterdir()) if (path / "__init__.py").is_file()}
    for name, folder in rooms.items():
        modules = [p for p in sorted(folder.rglob("*.py")) if p.name != "__init__.py" and not p.name.startswith("_")]
        pages[f"api/rooms/{name}.md"] = _room(f"ubmd.{name}", f"ubmd.{name}", modules)
    ground = [p for p in sorted(package.glob("*.py")) if not p.name.startswith("__")]
    pages["api/rooms/ground_floor.md"] = _room(GROUND_FLOOR, None, ground)
    return pages


def _room(title: str, room: str | None, modules: list[Path]) -> str:
    out = [f"# {title}", ""]
    if room:  # its docstring; what it offers is documented where it is defined
        shown = "show_root_heading: false, show_root_toc_entry: false, members: false, show_source: false"
        out += [f"::: {room}", f"    options: {{{shown}}}", ""]
    for path in modules:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        out += [f"::: {name}", "    options: {show_source: true}", ""]
    return "\n".join(out)
