"""A real Chromium, headless; the distribution's package."""

import shutil

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def chromium():
    """Of one module: playwright's loop in this thread keeps other tests from running one."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """open_page(url, **options) -> page; whatever it complains about or fetches elsewhere fails."""
    contexts, complaints = [], []

    def open_one(url, **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text) if said.type in {"error", "warning"} else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url, "data:", "blob:"))
                else complaints.append(f"asked {request.url}")
            ),
        )
        page.goto(url)
        return page

    open_one.complaints = complaints
    yield open_one
    for context in contexts:
        context.close()
    # The browser itself says so of a refused key, and of a gateway that is gone when a test ends.
    assert [c for c in complaints if not c.startswith("Failed to load resource: ")] == []
