"""The README and the documentation as people see them, in a browser."""

import pathlib
import re
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
# What GitHub gives a README: its fonts' sizes, its distances, tables that scroll.
STYLE = """
body { margin: 0; font: 16px/1.5 "Noto Sans", Helvetica, Arial, sans-serif }
h1, h2 { border-bottom: 1px solid; margin: 24px 0 16px; padding-bottom: .3em; line-height: 1.25 }
p, pre, table { margin: 0 0 16px }
img { max-width: 100% }
code, pre { font: 13.6px/1.45 monospace }
pre { padding: 16px; overflow: auto }
table { border-collapse: collapse; display: block; max-width: 100%; overflow: auto }
th, td { border: 1px solid; padding: 6px 13px }
"""
# One of each kind: text, tables that scroll, the reference, a notebook.
PAGES = ["index.html", "results/transfer/index.html", "api/models/index.html"]
PAGES += [f"tutorials/{path.stem}/index.html" for path in ROOT.glob("docs/tutorials/*.ipynb")][:1]
ALLOWED = ("file:", "data:", "blob:", "https://img.shields.io/")


def test_the_readme_is_one_page_that_nothing_overflows(browser, tmp_path):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    body = markdown.render((ROOT / "README.md").read_text())
    head = f"<base href='{ROOT.as_uri()}/'><style>{STYLE}</style>"
    (tmp_path / "README.html").write_text(f"<!doctype html><meta charset=utf-8>{head}{body}")
    page = browser.new_page(viewport={"width": 832, "height": 900})
    page.route("https://**", lambda route: route.abort())  # badges
    page.goto((tmp_path / "README.html").as_uri())
    width, height = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    )
    assert width <= 832 and height < 4000
    inner = "[...document.querySelectorAll('pre, table')].map(e => e.scrollWidth - e.clientWidth)"
    assert max(page.evaluate(inner)) <= 0
    loaded = "[...document.images].filter(e => e.src.startsWith('file')).map(e => e.naturalWidth)"
    assert page.evaluate(loaded) and min(page.evaluate(loaded)) > 0
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.fixture
def site():
    """The folder of the built documentation."""
    if not (SITE / "index.html").exists():
        pytest.skip("there is no site/: `make docs` builds it")
    return SITE


def test_every_link_within_the_documentation_leads_somewhere(site):
    lost = []
    for path in set(site.rglob("*.html")) - {site / "404.html"}:
        for address in set(re.findall(r'(?:href|src)="([^"]+)"', path.read_text())):
            parts = urllib.parse.urlsplit(address)
            if parts.scheme:  # elsewhere, or an image in the page itself
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                lost.append((str(path), address))
    assert not lost


@pytest.fixture
def opened(browser, site):
    """A page of the built site; an error, or what it loads from elsewhere, fails the test."""
    page, wrong = browser.new_page(viewport={"width": 1400, "height": 900}), []
    page.route("https://**", lambda route: route.abort())  # badges
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(ALLOWED) else None)
    yield page
    page.close()
    assert not wrong


@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_read_a_page_of_the_documentation(opened, site, name):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        opened.goto((site / name).as_uri())
        opened.wait_for_load_state("load")
        for width in (400, 832, 1400):
            opened.set_viewport_size({"width": width, "height": 900})
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
        violations = axe.Axe().run(opened).response["violations"]
        serious = [rule for rule in violations if rule["impact"] in ("serious", "critical")]
        assert not [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in serious]
