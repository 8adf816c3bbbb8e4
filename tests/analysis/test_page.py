"""The page of a run: what it holds, what it says is missing, that data stay text, and how a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms

from tests.chromium import PROGRAM, Chromium
from ubmd.analysis.evaluation import Evaluation
from ubmd.analysis.figures import calibration_scatter, save_figure
from ubmd.analysis.numbers import write_numbers
from ubmd.analysis.page import document
from ubmd.analysis.page.document import write_page
from ubmd.analysis.page.rejected import Rejected, rejected_structures
from ubmd.analysis.page.sections import SECTIONS
from ubmd.analysis.page.worst import WORST, worst_structures
from ubmd.cli import main as cli
from ubmd.data.io import write_structures
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.stopping import StopReason
from ubmd.dynamics.trajectory import write_trajectory
from ubmd.errors import InputError
from ubmd.reference.base import Label
from ubmd.reference.labelling import with_label
from ubmd.reference.store import Failure, LabelStore
from ubmd.rounds.figures import write_report
from ubmd.runs.metrics import read_metrics, write_metrics

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">'
VOID = {"meta", "link", "img", "br"}
TORSION = {"_target_": "ubmd.observables.Torsion"}


@dataclass
class Page(HTMLParser):
    """Elements, texts and scripts of a page, whose tags must fit together."""

    text: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: str = ""
    scripts: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_page(folder).read_text(encoding="utf-8"))


def exploration(seed: int) -> Exploration:
    """Two walkers of five atoms, the first of which crossed the threshold."""
    rng, f = np.random.default_rng(seed), 40
    return Exploration(
        numbers=np.array([6, 7, 6, 6, 1]), pbc=np.zeros(3, dtype=bool), walker=np.repeat([0, 1], 20),
        step=np.tile(np.arange(1, 21), 2), positions=rng.normal(0, 1.5, (f, 5, 3)), cell=np.zeros((f, 3, 3)),
        energy=np.zeros(f), uncertainty=np.zeros(f), atomic_uncertainty=rng.uniform(0.1, 1.0, (f, 5)),
        tau=np.zeros(f), walkers=np.array([0, 1]),
        reasons=np.array([StopReason.UNCERTAINTY, StopReason.NAN], dtype=np.int8),
        steps=np.full(2, 20), temperature=np.full(2, 300.0), max_uncertainty=np.full(2, 1.6),
    )  # fmt: skip


def begin_run(folder: Path, **config: Any) -> Path:
    """A run that has begun."""
    folder.mkdir(parents=True)
    atoms = {"phi": TORSION | {"atoms": [0, 1, 2, 3]}, "psi": TORSION | {"atoms": [1, 2, 3, 4]}}
    known = {
        "name": "test", "seed": 3, "learning": {"max_structures": 24}, "system": {"variables": atoms},
        "labelling": {"max_force": 20.0}, "calibration": {"atomic": {"alpha": 0.05}},
        "dynamics": {"integrator": {"dt": 0.5, "temperature": 300.0}, "frame_interval": 1},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(known | config))
    (folder / "provenance.json").write_text(json.dumps({"ubmd": "1.2.3", "torch": "2", "git": None}))
    return folder


def write_rounds(folder: Path, n: int = 3, *, tested: bool = True) -> None:
    """Rounds, the last of which has not explored."""
    rows: list[dict[str, Any]] = []
    for index in range(n):
        row: dict[str, Any] = {"round": index, "n_train": 7 + 8 * index, "n_valid": 1, "coverage": 0.1 + 0.1 * index}
        kind = "" if tested else "valid_"
        row |= {
            f"{kind}energy_rmse_mev_per_atom": 30.0 / (1 + index),
            f"{kind}force_rmse_ev_per_ang": 0.6 / (1 + index),
        }
        row |= {"conformal_scale_atom": 2.0, "conformal_scale_total": 3.0, "time_fit_s": 60.0, "time_label_s": 5.0}
        if index < n - 1:
            row |= {"n_selected": 8, "n_rejected": 0, "md_steps": 40, "n_candidates": 40, "time_explore_s": 5.0}
            row |= {"acquired_coverage_atom": 0.9, "acquired_coverage_total": 0.5}
            (folder / f"rounds/{index:03d}").mkdir(parents=True)
            write_trajectory(folder / f"rounds/{index:03d}/trajectory.h5", exploration(index))
        rows.append(row)
    write_metrics(folder / "metrics.csv", rows)


def molecule(seed: int, periodic: bool = False) -> Atoms:
    rng = np.random.default_rng(seed)
    positions = 1.4 * np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [2, 1, 1], [0, 0, 1.0]]) + rng.normal(0, 0.05, (5, 3))
    atoms = Atoms("CNCCH", positions, cell=np.diag([5.0, 4.0, 12.0]) if periodic else None, pbc=periodic)
    return with_label(atoms, Label(-1.0, rng.normal(size=(5, 3)), None))


def write_test_results(folder: Path, *, periodic: bool = False) -> list[Atoms]:
    """What the end of a run leaves of a test set of ten structures; returns the worst ones."""
    structures = [molecule(seed, periodic) for seed in range(10)]
    labels = np.concatenate([atoms.arrays["REF_forces"] for atoms in structures])
    offsets = 0.1 * np.arange(1, 51)[:, None] * np.ones(3)
    found = Evaluation(
        numbers=np.tile(structures[0].numbers, 10), n_atoms=np.full(10, 5), energy=np.full((2, 10), -1.0),
        forces=np.stack([labels + offsets, labels]), stress=None, uncertainty=np.full(10, 0.1),
        atomic_uncertainty=np.linspace(1, 4, 50),
    )  # fmt: skip
    error, bound = found.largest(found.atomic_error), found.largest(found.atomic_uncertainty)
    save_figure(calibration_scatter(error, bound, alpha=0.05), folder / "figures" / "calibration.png", dpi=50)
    columns = {"error_ev_per_ang": error, "uncertainty_ev_per_ang": bound}
    write_numbers(folder / "figures" / "calibration.csv", columns)
    worst = worst_structures(structures, found)
    write_structures(folder / "figures" / WORST, worst)
    return worst


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = begin_run(tmp_path_factory.mktemp("runs") / "finished")
    write_rounds(folder)
    write_test_results(folder)
    return folder


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return page_of(finished)


def test_the_page_is_whole_and_needs_nothing_beside_itself(page: Page) -> None:
    sections = [attributes["id"] for attributes in page.all("section")]
    assert len(sections) == len(SECTIONS)
    assert [a["href"] for a in page.all("a")] == ["#report", *(f"#{name}" for name in sections)]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("nav")) == 1
    for _, attributes in page.elements:
        assert not attributes.keys() & {"onclick", "onload", "onerror"}
        for key in ("src", "href", "xlink:href"):
            assert attributes.get(key, "#").startswith(("data:", "#"))
        assert "url(http" not in attributes.get("style", "")
    names = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert {name for name, n in names.items() if n > 1} == set()
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}';" in policy


def test_pictures_and_tables_tell_what_they_show(page: Page) -> None:
    assert len(page.all("img")) == 2  # calibration, and what was explored, drawn of the trajectories
    assert all(a["alt"] for a in page.all("img"))
    assert all(a["aria-label"] for a in page.all("svg") + page.all("canvas"))
    assert len(page.all("figure")) == len(page.all("figcaption"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(a.get("scope") in ("row", "col") for a in page.all("th"))
    for told in ("Finished.", "Labelled structures24", "0.200 eV/Å", "Numbers became infinite or NaN", "ubmd1.2.3"):
        assert told in page.words
    assert "Two atoms came too close" not in page.words  # no walker ended so
    assert "missing" not in {a.get("class") for a in page.all("p")}


def test_views_hold_the_worst_structures(finished: Path, page: Page) -> None:
    views = [json.loads(text) for text in page.scripts[:-1]]
    assert len(views) == 6
    # the last atom of the last structure is worst, with an error of 0.1 times 50
    assert views[0]["order"] == [4, 3, 2, 1, 0]
    assert views[0]["atoms"][4]["words"] == "H 4: error 5, uncertainty 4 eV/Å"
    assert (
        "Structure 9. C₃HN: worst atom H 4 with a force error of 5 eV/Å (uncertainty 4, which it exceeds)" in page.words
    )
    assert "Structure 4. " in page.words
    assert "Structure 3. " not in page.words
    positions = np.array([atom["at"] for atom in views[0]["atoms"]])
    distances = np.linalg.norm(positions[:, None] - positions, axis=2)
    np.testing.assert_allclose(distances, molecule(9).get_all_distances(), atol=2e-3)
    first, second = molecule(9).positions[1:3] - molecule(9).positions[0]
    triple = np.dot(np.cross(first, second), molecule(9).positions[3] - molecule(9).positions[0])
    turned = positions[1:4] - positions[0]
    assert np.dot(np.cross(turned[0], turned[1]), turned[2]) == pytest.approx(triple, abs=0.02)  # no mirror image
    assert sorted(map(sorted, views[0]["bonds"])) == [[0, 1], [1, 2]]
    assert views[0]["edges"] == []


def test_a_crystal_is_shown_in_its_cell(tmp_path: Path) -> None:
    folder = begin_run(tmp_path / "crystal")
    write_test_results(folder, periodic=True)
    edges = np.array(json.loads(page_of(folder).scripts[0])["edges"])
    assert (
        sorted(np.linalg.norm(edges[:, 0] - edges[:, 1], axis=1).round(2).tolist())
        == [4.0] * 4 + [5.0] * 4 + [12.0] * 4
    )
    assert np.ptp(edges[..., 0]) == pytest.approx(12, abs=0.01)  # the longest edge lies along the width


def test_data_stay_text(tmp_path: Path) -> None:
    folder = begin_run(tmp_path / "<script>alert(1)<", name=HOSTILE, bias={"_target_": f"x.{HOSTILE}"}, seed=HOSTILE)
    write_rounds(folder, 1)
    write_test_results(folder)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"name={HOSTILE}"]))
    (folder / "provenance.json").write_text(json.dumps({HOSTILE: HOSTILE, "changes": [{"time": HOSTILE}]}))
    LabelStore(folder / "labels.db").put(molecule(0), {}, Failure(HOSTILE))
    page = page_of(folder)
    assert page.words.count(HOSTILE) >= 8
    assert "test / <script>" not in page.words
    assert "<script>alert(1)<" in page.words
    assert len(page.scripts) == 7
    assert all(a["src"].startswith("data:") and "onerror" not in a for a in page.all("img"))


def test_rejections_and_their_reasons(tmp_path: Path) -> None:
    folder = begin_run(tmp_path / "run")
    (folder / "rounds/000").mkdir(parents=True)
    chosen = [molecule(seed) for seed in range(4)]
    for walker, atoms in enumerate(chosen):
        atoms.info |= {"walker": walker, "step": 7}
    write_structures(folder / "rounds/000/selected.extxyz", chosen)
    store = LabelStore(folder / "labels.db")
    forces = np.zeros((5, 3))
    forces[2, 1] = -30.0
    store.put(chosen[1], {}, Label(0.0, forces, None))
    store.put(chosen[2], {}, Failure("no convergence"))
    store.put(molecule(9), {}, Failure("of the start"))
    config = {"labelling": {"max_force": 20.0}}
    start, failed = Rejected(-1, "", "of the start"), Rejected(0, "walker 2, step 7", "no convergence")
    assert rejected_structures(folder, config) == [start, failed]  # the others are still to be labelled
    write_structures(folder / "rounds/000/labelled.extxyz", chosen[:1])
    found = rejected_structures(folder, config)
    assert found[0] == start
    assert found[1] == Rejected(0, "walker 1, step 7", "force of 30.0 eV/Å exceeds the limit of 20 eV/Å")
    assert found[2] == failed
    assert found[3].reason.startswith("no label was stored")
    assert "4 structures without a usable label" in page_of(folder).words


def test_what_a_run_does_not_have_is_said(tmp_path: Path) -> None:
    begun = page_of(begin_run(tmp_path / "begun"))
    for told in ("Not finished: the same command continues", "No round is finished", "No round has explored"):
        assert told in begun.words
    assert "This is missing: no round has acquired labels, and no test set was evaluated." in begun.words
    assert "not be made" not in begun.words
    untested = begin_run(tmp_path / "untested")
    write_rounds(untested, 1, tested=False)
    words = page_of(untested).words
    for told in ("Finished.", "There is no test set (data.test)", "No round has compared new labels"):
        assert told in words
    rows = read_metrics(untested / "metrics.csv")
    write_metrics(untested / "metrics.csv", [rows[0] | {"n_selected": 0, "n_rejected": 0}])
    assert "Ended early: the last round acquired no structure." in page_of(untested).words


def test_a_section_that_cannot_be_made_leaves_the_others(tmp_path: Path) -> None:
    folder = begin_run(tmp_path / "run")
    write_rounds(folder)
    (folder / "rounds/001/trajectory.h5").write_bytes(b"nothing")
    (folder / "labels.db").write_bytes(b"SQLite format 3\x00 and no more")
    (folder / "provenance.json").write_text("{")
    words = page_of(folder).words
    assert "This is missing: trajectory " in words
    assert "labels.db is" in words
    assert "provenance.json is missing or damaged" in words
    assert "Wall time of each stage" in words


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begin_run(tmp_path / "run")
    write_rounds(folder, 1)
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    first = (folder / "report.html").read_bytes()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == first
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "it has no config.yaml" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(InputError, match="no run of `ubmd learn`"):
        write_page(tmp_path)


def test_a_page_that_fails_does_not_fail_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, allow: Any) -> None:
        raise RuntimeError("no pen")

    monkeypatch.setattr("ubmd.rounds.figures.write_page", fail)
    run: Any = SimpleNamespace(store=SimpleNamespace(path=tmp_path), potentials=SimpleNamespace(allow=()))
    write_report(run)
    assert "no pen" in caplog.text
    assert f"ubmd report {tmp_path}" in caplog.text


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    if PROGRAM is None:
        pytest.skip("no Chromium is installed")
    browser = Chromium(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.mark.slow
def test_in_a_browser(finished: Path, browser: Chromium) -> None:
    file = write_page(finished)
    picture = "[...document.querySelectorAll('canvas')].map(c => c.toDataURL())"
    browser.show(1280)
    browser.open(file)
    assert len(set(browser.value(picture))) == 6
    assert browser.value("[...document.images].every(image => image.naturalWidth > 100)")
    for width, scheme in ((400, "light"), (400, "dark"), (1280, "dark")):
        browser.show(width, scheme)
        assert browser.value("document.documentElement.scrollWidth <= innerWidth"), (width, scheme)
        small = (
            "[...document.querySelectorAll('main *')].filter(e => e.textContent.trim() && e.closest('svg') === null)"
        )
        assert browser.value(f"Math.min(...{small}.map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 13
        lines = browser.value("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
        assert min(lines) > 8
    dark = browser.value("getComputedStyle(document.body).backgroundColor")
    browser.show(1280)
    assert browser.value("getComputedStyle(document.body).backgroundColor") != dark
    assert browser.complaints() == []


@pytest.mark.slow
def test_by_keyboard(finished: Path, browser: Chromium) -> None:
    file = write_page(finished)
    browser.show(1280)
    browser.open(file)
    browser.press("Tab")
    assert browser.value("document.activeElement.textContent") == "Skip to the report"
    for _ in range(60):
        browser.press("Tab")
        if browser.value("document.activeElement.tagName") == "CANVAS":
            break
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.value(outline) == "solid"
    seen = [browser.value("document.activeElement.toDataURL()")]
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown", "+", "n"):
        browser.press(key)
        seen.append(browser.value("document.activeElement.toDataURL()"))
        assert seen[-1] != seen[-2], key
    assert browser.value("document.activeElement.closest('figure').querySelector('output').textContent").startswith(
        "C 3:"
    )
    browser.press("0")
    assert browser.value("document.activeElement.toDataURL()") == seen[0]
    browser.press("Tab")
    assert browser.value("document.activeElement.textContent") == "Colours of elements"
    browser.press("Enter")
    assert browser.value("document.activeElement.getAttribute('aria-pressed')") in ("true", "false")
    assert browser.complaints() == []


def test_nothing_in_the_pages_own_files_ends_their_elements() -> None:
    folder = Path(document.__file__).parent
    assert "</" not in (folder / "page.css").read_text()
    assert "</script" not in (folder / "viewer.js").read_text()
