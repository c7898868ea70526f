"""A report of a run that was never made, on disk and in a browser."""

import pytest

import dag_jax.report
from tests.report import toy_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A table of a segmenter and a detector with odd names, and its page."""
    folder = tmp_path_factory.mktemp("report") / "odd & <name>"
    keys = [toy_run.ODD, *(f"image_{i:03d}" for i in range(64))]
    rows = toy_run.make_table(folder, keys, ("toy", "my.module:load 100%"))
    return folder, rows, dag_jax.report.write(folder)


@pytest.fixture
def show(browser):
    """Opens a page in a browser; what it logs or cannot load fails the test."""
    page, wrong = browser.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.on("request", lambda r: None if r.url[:5] in ("file:", "data:") else wrong.append(r.url))
    page.set_default_timeout(10_000)

    def go(path):
        page.goto(path.as_uri())
        return page

    yield go
    page.close()
    assert not wrong


@pytest.fixture
def opened(show, run):
    """The page of `run` in a browser, its images listed."""
    page = show(run[2])
    page.wait_for_selector(".tile")
    return page
