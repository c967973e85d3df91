import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from demo_folder import HOSTILE, make_demo

from frugalfm.reporting import collect_demo, write_report
from frugalfm.reporting.figures import draw_figures
from frugalfm.reporting.html import render_html
from frugalfm.reporting.verdicts import judge

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Checker(HTMLParser):
    """Notes unbalanced elements, ids, and addresses that would be loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.loads, self.seen, self.unbalanced = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.note(attrs)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.note(attrs)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def note(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"src", "href", "xlink:href", "data", "srcset"}:
                self.loads.append(value)


@pytest.fixture(scope="module")
def page(results):
    return render_html(results)


@pytest.fixture(scope="module")
def checked(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    return checker


def test_is_well_formed(checked):
    assert checked.unbalanced == []
    assert checked.open == []
    assert len(checked.ids) == len(set(checked.ids))


def test_loads_nothing(page, checked):
    assert checked.loads
    assert all(target.startswith("#") for target in checked.loads)
    assert {target[1:] for target in checked.loads} <= set(checked.ids)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(checked.seen)
    assert "@import" not in page
    assert {*re.findall(r"url\(([^)]*)\)", page)} <= {f"#{name}" for name in checked.ids}
    assert "http" not in page
    assert len(page) < 1_500_000


def test_hostile_ids_and_options_are_escaped(results, page):
    assert HOSTILE in set(results.pool.family)
    assert HOSTILE not in page
    run = replace(results.runs[0], options={"name": HOSTILE})
    model = replace(results.models[0], label=HOSTILE)
    changed = replace(results, runs=(run,), models=(model, *results.models[1:]), title=HOSTILE)
    changed = replace(changed, device=HOSTILE, architecture=HOSTILE)
    assert HOSTILE not in render_html(changed)


def test_every_figure_says_what_is_seen(results, page):
    figures = draw_figures(results)
    assert len(figures) == 11
    for figure in figures:
        assert figure.alt
        assert figure.caption.endswith(".")
        assert 'role="img" aria-label="' in figure.svg[:300]
        assert page.count(f'id="figure-{figure.slug}"') == 1


def test_colours_are_variables_of_the_page(page):
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", drawn) == []
    used = set(re.findall(r"var\((--[a-z]+)\)", page))
    assert used <= set(re.findall(r"(--[a-z]+):", page))


def test_same_input_same_bytes(demo, page):
    assert render_html(collect_demo(demo)) == page


def test_less_to_report_is_no_failure(results):
    bare = replace(results, coresets=(), outliers=(), quantizations=())
    checker = Checker()
    checker.feed(render_html(bare))
    assert checker.unbalanced == []
    untrained = replace(bare, models=results.role("untrained"))
    assert [figure.slug for figure in draw_figures(untrained)] == ["scores"]
    assert "Probe" not in dict(judge(untrained))


def test_families_may_hold_what_matplotlib_takes_for_formulas(results):
    family = np.where(results.pool.family == "tRNA", "$\\frac{$", "")
    changed = replace(results, pool=replace(results.pool, family=family))
    figure = next(f for f in draw_figures(changed) if f.slug == "families")
    assert "$\\frac{$: " in figure.alt


def test_report_and_numbers_are_written(tmp_path):
    folder = make_demo(tmp_path / "demo")
    write_report(collect_demo(folder), folder / "report.html")
    write_report(collect_demo(folder), folder / "report.html")  # again, over the old one
    numbers = json.loads((folder / "results.json").read_text())
    assert numbers["models"][0]["name"] == "random"
    assert numbers["models"][-1]["accuracy_minus_random"]["value"] == pytest.approx(-0.25)
    assert numbers["quantization"][0]["label"] == "W8A8"
    assert numbers["verdicts"][0]["topic"] == "Probe"
    assert not list(folder.glob(".*.tmp"))
