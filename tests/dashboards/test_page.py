"""The built-in page in a real browser, in front of the real gateway application."""

import re

import numpy as np
import pytest

from orchestrator.telemetry.matrix import encode
from tests.dashboards.moving_mesh import CHANGE, LINES, ledger_with_a_job, moving_mesh, served
from tests.processes import wait_until

pytestmark = pytest.mark.long


def text(page, selector):
    return page.text_content(selector) or ""


def until(page, condition):
    """Wait for a condition in the page; playwright's own way needs `eval`, which is forbidden."""
    wait_until(lambda: page.evaluate(condition), timeout_s=90)


def wait_for_load(page):
    until(page, "document.querySelector('#heat-empty').hidden")
    until(page, "document.querySelector('#c-load .plot-container') !== null")


def test_it_shows_the_mesh_and_keeps_up(open_page):
    mesh = moving_mesh()
    with served(mesh) as url:
        page = open_page(url)
        wait_for_load(page)
        assert page.url.endswith("/ui")
        assert (text(page, "#ready"), text(page, "#live")) == ("ready", "live")
        assert page.locator("#shards .item").count() == 4
        assert page.locator("#shards .tag").count() == 3  # emulated ones say so
        assert 0 < float(text(page, "#t-balance")) < 1
        mesh.dead, mesh.epoch = {"cpu-0"}, 2
        until(page, "document.querySelector('#t-epoch').textContent === '2'")
        assert text(page, "#ready") == "not ready"
        assert "killed by SIGKILL" in text(page, "#events")
        until(page, "document.querySelector('#shards .dot.dead') !== null")


def test_an_expert_is_found_by_pointer_and_by_keys(open_page):
    with served(moving_mesh()) as url:
        page = open_page(url)
        wait_for_load(page)
        page.hover("#heat", position={"x": 5, "y": 5})
        until(page, "!document.querySelector('#tip').hidden")
        assert text(page, "#tip").startswith("Layer 0 · expert 0")
        page.focus("#heat")
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        assert re.match(r"Layer 1, expert 3: [\d.,]+( k)? assignments", text(page, "#cell"))


def test_it_tells_who_lives_where_and_why_things_move(open_page):
    mesh = moving_mesh(change=CHANGE, lines=list(LINES))
    with served(mesh) as url:
        page = open_page(url)
        wait_for_load(page)
        until(page, "document.querySelector('#events').textContent.includes('first placement')")
        assert "Transaction 4: rebalance, preparing" in text(page, "#change")
        assert "would not have paid" in text(page, "#change")
        assert re.search(r"2 copies\s*32 experts", text(page, "#change"))
        page.hover("#heat", position={"x": 5, "y": 5})
        until(page, "document.querySelector('#tip').textContent.includes('2 copies: on ')")
        mesh.change = None
        until(page, "document.querySelector('#change').textContent.includes('nothing is moving')")
        page.select_option("#heat-shard", "cpu-0")
        page.hover("#heat", position={"x": 9, "y": 5})


def test_one_kind_of_traffic_can_be_chosen(open_page):
    mesh = moving_mesh()
    mesh.tell_kind("code")
    with served(mesh) as url:
        page = open_page(url)
        wait_for_load(page)
        until(page, "document.querySelectorAll('#heat-kind option').length === 2")
        page.select_option("#heat-kind", "code")
        until(page, "document.querySelector('#heat-shard').disabled")
        page.hover("#heat", position={"x": 5, "y": 5})
        until(page, "document.querySelector('#tip').textContent.includes('50.0 % of the layer')")
        page.select_option("#heat-kind", "")
        page.hover("#heat", position={"x": 6, "y": 6})
        until(page, "document.querySelector('#tip').textContent.includes('assignments')")


def test_dragging_zooms_and_escape_shows_all(open_page):
    with served(moving_mesh()) as url:
        page = open_page(url)
        wait_for_load(page)
        box = page.locator("#heat").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 20, steps=4)
        page.mouse.up()
        page.mouse.move(box["x"] + 2, box["y"] + 20)
        until(page, "document.querySelector('#tip').textContent.includes('expert 16')")
        page.focus("#heat")
        page.keyboard.press("Escape")
        page.mouse.move(box["x"] + 3, box["y"] + 20)
        until(page, "/expert 0\\n/.test(document.querySelector('#tip').textContent)")


def test_keys_are_asked_for_and_sent(open_page):
    with served(moving_mesh(), keys=("secret",)) as url:
        page = open_page(url)
        until(page, "!document.querySelector('#key-form').hidden")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        until(page, "!document.querySelector('#key-wrong').hidden")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        wait_for_load(page)
        assert page.is_hidden("#key-form")


def test_an_idle_mesh_and_a_lost_controller_say_so(open_page):
    mesh = moving_mesh(idle=True)
    with served(mesh) as url:
        page = open_page(url)
        until(page, "document.querySelector('#ready').textContent === 'ready'")
        assert text(page, "#heat-empty") == "Waiting for the first tokens"
        assert text(page, "#t-balance") == "–"
        mesh.silent = True
        until(page, "!document.querySelector('#stale').hidden")
        assert "The controller does not answer" in text(page, "#stale")
        assert text(page, "#live").endswith("old")
        assert page.locator("#shards .item").count() == 4
        mesh.silent = False
        until(page, "document.querySelector('#stale').hidden")


def test_changes_are_shown_as_a_dry_run_first_and_need_an_admin_key(open_page):
    mesh = moving_mesh()
    with served(mesh, admins=("root",)) as url:
        page = open_page(url)
        until(page, "document.querySelector('#o-pool').options.length === 4")
        page.select_option("#o-pool", "ascend")
        page.fill("#o-size", "3")
        page.click("[data-verb=scale]")
        until(page, "!document.querySelector('#o-key-row').hidden")
        assert "no valid admin key" in text(page, "#o-answer")
        page.fill("#o-key", "root")
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#o-answer').textContent === 'would scale'")
        assert mesh.asked == [("scale", "ascend", 3, True)]
        page.fill("#o-size", "4")
        assert page.is_hidden("#o-do")  # what was tried is not what would be done
        page.click("[data-verb=scale]")
        until(page, "!document.querySelector('#o-do').hidden")
        page.click("#o-do")
        until(page, "document.querySelector('#o-answer').textContent === 'will scale'")
        assert mesh.asked[1:] == [("scale", "ascend", 4, True), ("scale", "ascend", 4, False)]
        stored = page.evaluate("JSON.stringify([localStorage, sessionStorage])")
        assert "root" not in stored


def test_what_if_plans_and_changes_nothing(open_page):
    mesh = moving_mesh()
    with served(mesh) as url:
        page = open_page(url)
        wait_for_load(page)
        until(page, "document.querySelectorAll('#w-pools input').length === 4")
        page.fill("[data-pool=ascend]", "3")
        page.keyboard.press("Enter")
        until(page, "document.querySelectorAll('#w-table tbody tr').length === 5")
        assert re.search(r"would take [\d.]+ % less time", text(page, "#w-answer"))
        assert re.search(r"shards\s*4\s*6", text(page, "#w-table"))
        page.fill("[data-pool=ascend]", "0")
        page.fill("[data-pool=nvidia]", "0")
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#w-answer').textContent.includes('too little memory')")
    assert mesh.asked == []


def test_batch_jobs_say_what_they_wait_for_and_not_whose_they_are(open_page, tmp_path):
    with served(moving_mesh(), batch=ledger_with_a_job(tmp_path)) as url:
        page = open_page(url)
        until(page, "!document.querySelector('#batch-card').hidden")
        until(page, "document.querySelectorAll('#batch .item').length === 1")
        assert "waits: its hours begin at 22:00" in text(page, "#batch")
        assert "1 validating" in text(page, "#batch-sums")
        assert "alice" not in page.content()


def test_text_from_the_mesh_is_text(open_page):
    mesh = moving_mesh()
    mesh.reason = "<img src=x onerror=alert(1)>"
    with served(mesh) as url:
        page = open_page(url)
        wait_for_load(page)
        assert text(page, "#foot") == mesh.reason
        assert page.locator("main img").count() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"viewport": {"width": 390, "height": 844}},
    ],
    ids=["light", "dark", "phone"],
)
def test_it_can_be_read_by_everybody(open_page, options):
    from axe_playwright_python.sync_playwright import Axe

    with served(moving_mesh()) as url:
        page = open_page(url, bypass_csp=True, **options)
        wait_for_load(page)
        found = Axe().run(page).response["violations"]
        serious = [
            (v["id"], [n["html"] for n in v["nodes"]][:3])
            for v in found
            if v["impact"] in {"serious", "critical"}
        ]
        assert serious == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        theme = page.evaluate("document.documentElement.dataset.theme")
        assert theme == options.get("color_scheme", "light")


def test_the_largest_model_on_256_shards_stays_quick(open_page):
    """Scripts, layout, painting and collecting garbage of the page's main thread, by its CPU time:
    other work on the machine takes none of it, and makes it half as long again at most."""
    mesh = moving_mesh(num_layers=61, num_experts=384, num_shards=256)
    with served(mesh, interval_s=1.5) as url:
        page = open_page(url)
        wait_for_load(page)
        browser = page.context.new_cdp_session(page)
        browser.send("Performance.enable", {"timeDomain": "threadTicks"})
        for place in ("#heat", "#c-tokens"):  # the charts are out of sight, and in sight
            page.evaluate(f"document.querySelector('{place}').scrollIntoView({{block: 'center'}})")
            page.wait_for_timeout(2000)
            tries_ms = [main_thread_ms(page, browser, updates=4)]
            while tries_ms[-1] >= 75 and len(tries_ms) < 4:
                tries_ms.append(main_thread_ms(page, browser, updates=4))
            print(f"an update with {place} in the middle takes {min(tries_ms):.0f} ms")
            assert min(tries_ms) < 75  # goal: 50
        paint_ms = page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )
        print(f"first paint {paint_ms:.0f} ms")


def main_thread_ms(page, browser, updates):
    """CPU time of the main thread by update, over so many of them."""

    def now():
        told = browser.send("Performance.getMetrics")["metrics"]
        seen = page.evaluate("performance.getEntriesByName('update').length")
        return {m["name"]: m["value"] for m in told}["TaskDuration"], seen

    begun_s, begun = now()
    for _ in range(90):
        page.wait_for_timeout(1000)
        ended_s, ended = now()
        if ended - begun >= updates:
            return 1000 * (ended_s - begun_s) / (ended - begun)
    raise AssertionError("the page gets no looks")


def test_the_decoder_reads_what_python_wrote(open_page):
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.integers(0, top, (3, 5)) for top in (2, 300, 2**40, 2**52)])
    with served(moving_mesh()) as url:
        page = open_page(url)
        got = page.evaluate(
            """async (bytes) => {
                const { decodeMatrix } = await import('/ui/matrix.js');
                const m = decodeMatrix(new Uint8Array(bytes).buffer);
                return [m.rows, m.columns, m.sequence, m.base, [...m.values]];
            }""",
            list(encode(values, 7, 3)),
        )
        assert got == [12, 5, 7, 3, values.ravel().tolist()]
