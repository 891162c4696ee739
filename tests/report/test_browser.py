"""The page in a real browser: no error, no request, sorting, hiding, pointing, phone, dark mode, paper."""

import re
import shutil

import pytest

from flattail import report, runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = ("wren", "owl", "all", "bat", "cat", "elk", "few", "dog", "cow", "ant")  # two like groups
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, written):
    """A page on four recipes, one of which is unfinished, with every analysis."""
    make, analyse = written
    folder = tmp_path_factory.mktemp("page")
    for seed in range(2):
        plain = make(folder / "runs", "ce", seed, names=NAMES)
        make(folder / "runs", "sam", seed, tail=2.2, terms=["flat"], names=NAMES, method={"name": "sam", "rho": 0.1})
        make(folder / "runs", "drw", seed, tail=3.1, head=2.4, terms=["head", "tail"], names=NAMES)
    make(folder / "runs", "late", 0, done=4)
    for name in ("hessian", "radius", "sharpness", "landscape", "escape"):
        analyse(plain, name)
    return report.build(runs.find([folder / "runs"]), folder / "report.html")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield opened
        opened.close()


@pytest.fixture
def page(browser, place):
    """The page, opened; whatever it says on the console or asks of a network fails the test."""
    said, asked = [], []
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(place.as_uri())
    yield page
    page.close()
    assert said == [] and asked == [place.as_uri()]


def column(page, index, table="table.summary"):
    return page.eval_on_selector_all(
        f"{table} tbody tr", f"rows => rows.map(row => row.cells[{index}].innerText.trim())"
    )


def test_numbers_sort_as_numbers_and_what_is_unknown_comes_last(page):
    before = column(page, 0)
    head = page.locator("table.summary thead th").nth(4)
    for direction, order in (("descending", True), ("ascending", False)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == direction
        shown = column(page, 4)
        assert shown[-1] == "–" and "±" in shown[0]
        values = [float(text.split("±")[0]) for text in shown[:-1]]
        assert values == sorted(values, reverse=order) and len(set(values)) == 3
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") is None and column(page, 0) == before


def test_signs_names_and_durations_sort_too(page):
    head = page.locator("table.summary thead th").nth(5)
    head.locator("button").click()
    shown = column(page, 5)
    gains = [float(text.split()[0].replace("−", "-")) for text in shown if text[0] in "+−"]
    assert len(gains) == 2 and gains == sorted(gains, reverse=True) and set(shown[2:]) == {"baseline", "–"}
    page.locator("table.summary thead th").nth(0).locator("button").click()
    names = [text.split()[0] for text in column(page, 0)]
    assert names == sorted(names) and page.locator("th[aria-sort]").count() == 1
    page.evaluate(
        """() => { const words = ["50 s", "1 h 02 min", "1.5 min", "–"];
        document.querySelectorAll("table.summary tbody tr").forEach((r, i) => {
          r.cells[1].textContent = words[i]; r.cells[2].textContent = ["1.2e−4", "−3.5", "12,406", "7 ×"][i]; }); }"""
    )
    page.locator("table.summary thead th").nth(2).locator("button").click()
    assert column(page, 2) == ["12,406", "7 ×", "1.2e−4", "−3.5"]
    page.locator("table.summary thead th").nth(1).locator("button").click()
    assert column(page, 1) == ["1 h 02 min", "1.5 min", "50 s", "–"]


def test_every_column_of_every_table_sorts_by_what_it_holds(page):
    """Numbers by value, words by the alphabet, what is unknown last; groups of classes stay below the classes."""
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    clicked = page.evaluate(
        """() => [...document.querySelectorAll("table[data-sort]")].flatMap(table => {
        const groups = [...table.tBodies].slice(1).map(body => body.innerText).join();
        return [...table.tHead.rows[0].cells].flatMap((head, i) => {
          const button = head.querySelector("button");
          if (!button) return [];
          button.click();
          const first = head.getAttribute("aria-sort"), body = table.tBodies[0];
          const cells = [...body.rows].map(row => row.cells[i]);
          const found = { head: head.innerText.trim(), first, texts: cells.map(cell => cell.innerText.trim()),
            values: cells.map(cell => cell.dataset.value ?? ""),
            groups: [...table.tBodies].slice(1).map(body => body.innerText).join() === groups,
            most: [...table.tBodies].slice(1).flatMap(body => [...body.rows])
              .map(row => row.cells[0].innerText.trim()) };
          button.click(); button.click();
          return [found]; }); })"""
    )
    assert len(clicked) > 60 and all(each["groups"] for each in clicked)
    assert "lost | gained" not in {each["head"] for each in clicked}
    by_class = [each for each in clicked if each["head"].startswith("class") and each["most"]]
    assert len(by_class) >= 7 and all(sorted(each["texts"]) == sorted(NAMES) for each in by_class)
    assert {tuple(each["most"]) for each in by_class} == {("many", "medium", "few", "all")}

    def value(text, own):
        found = re.match(r"[+−]?[\d.,]+(e−?\d+)?", text)
        return float(own) if own else float(found[0].replace("−", "-").replace(",", "")) if found else None

    numeric = [each for each in clicked if each["first"] == "descending"]
    for each in numeric:
        known = [x for x in map(value, each["texts"], each["values"]) if x is not None]
        if not any(re.search(r"\d (s|min|h)\b", text) for text in each["texts"]):
            assert known == sorted(known, reverse=True), each
    assert {"p", "over seeds", "Δ, over images", "train", "gained"} <= {each["head"].rstrip(" ↓") for each in numeric}
    assert any(text == "< 1e−6" for each in numeric if each["head"].startswith("p") for text in each["texts"])


def test_a_hidden_method_is_gone_from_tables_and_figures(page, place):
    key = next(row.key for row in report.summary(runs.find([place.parent / "runs"])) if row.label == "sam")
    shown = f"[data-row='{key}']"
    visible = "all => all.filter(e => e.getClientRects().length).length"
    assert page.eval_on_selector_all(f"tr{shown}", visible) > 4
    assert page.eval_on_selector_all(f"svg g{shown}[data-line]", visible) > 2
    assert page.eval_on_selector_all(f"svg g{shown}[data-bar]", visible) >= 14
    page.locator(f".legend button[data-toggle='{key}']").first.click()
    for what in ("tr", "svg g", "svg", "div"):
        assert page.eval_on_selector_all(f"{what}{shown}", visible) == 0
    assert page.locator(f".legend button[data-toggle='{key}']").first.get_attribute("aria-pressed") == "false"
    assert page.inner_text(".pick summary").endswith("3 of 4 shown")
    page.click(".pick summary")
    box = page.locator(f".pick input[data-toggle='{key}']")
    assert not box.is_checked()
    box.check()
    assert page.eval_on_selector_all(f"tr{shown}", visible) > 4 and "all 4 shown" in page.inner_text(".pick summary")
    page.click(".pick button[value=none]")
    assert page.eval_on_selector_all("table.summary tbody tr", visible) == 0


def test_pointing_tells_bars_lines_and_cells(page):
    from playwright.sync_api import expect

    def shown(selector):
        """Scrolled to, and the event of scrolling over, which hides what is told."""
        found = page.locator(selector).first
        found.scroll_into_view_if_needed()
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return found

    def point_at(selector, share):
        at = shown(selector).bounding_box()
        page.mouse.move(at["x"] + share[0] * at["width"], at["y"] + share[1] * at["height"])

    tip = page.locator(".tip")
    point_at("svg [data-bar^='ce · few'] path", (0.5, 0.5))
    expect(tip).to_have_text(re.compile(r"^ce · few "))
    expect(tip).to_be_visible()
    point_at(".matrix td.right[data-tip], .matrix td.right[title]", (0.5, 0.5))
    expect(tip).to_have_text(re.compile("^wren called wren: "))
    expect(tip).to_be_visible()
    shown("svg[aria-label='training loss']")
    at = page.evaluate(
        """() => { const svg = document.querySelector("svg[aria-label='training loss']");
        const path = svg.querySelector("g[data-line] path").getAttribute("d"), box = svg.getBoundingClientRect();
        const found = [...path.matchAll(/[ML] *(-?[\\d.]+)[ ,]+(-?[\\d.]+)/g)].map(m => [+m[1], +m[2]]);
        const scale = box.width / svg.viewBox.baseVal.width, [x, y] = found[9];
        return [box.left + scale * x, box.top + scale * y]; }"""
    )
    page.mouse.move(*at)
    expect(tip).to_contain_text(" · epoch 10 · training loss 0.")
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()


@pytest.mark.parametrize("width", [390, 760, 1200])
def test_no_screen_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_drawings_can_be_read_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    small = page.evaluate(
        """() => [...document.querySelectorAll("svg[viewBox] text")].filter(e => e.getClientRects().length).map(e => {
        const svg = e.ownerSVGElement, scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
        return [scale * parseFloat(getComputedStyle(e).fontSize), e.textContent, svg.getAttribute("aria-label")]; })"""
    )
    assert len(small) > 300 and [each for each in small if each[0] < 9] == []


def test_a_finger_is_told_what_a_pointer_is(browser, place):
    context = browser.new_context(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(place.as_uri())
    bar = page.locator("svg [data-bar^='ce · few'] path").first
    bar.scroll_into_view_if_needed()
    bar.tap()
    assert re.match("ce · few ", page.locator(".tip").inner_text())
    head = page.locator("table.summary thead th").nth(4)
    head.locator("button").tap()
    assert head.get_attribute("aria-sort") == "descending"
    context.close()


def test_bars_tell_the_scores_of_the_runs(page, place):
    """Per class, the most frequent first, and per group: the means over seeds of what scores.json holds."""
    found = runs.find([place.parent / "runs"])
    for label in ("ce", "sam", "drw"):
        own = [run.scores["scores"] for run in found if run.label == label]
        means = [100 * sum(each["per_class"][c] for each in own) / len(own) for c in range(10)]
        bars = page.eval_on_selector_all(
            f"svg[aria-label='Accuracy per class'] [data-bar^='{label} · ']", "all => all.map(e => e.dataset.bar)"
        )
        assert [bar.split(" · ")[1].split(" ")[0] for bar in bars] == list(NAMES)
        told = [float(re.findall(r"(\d+\.\d)", bar)[0]) for bar in bars]
        assert told == pytest.approx(means, abs=0.051)


def test_every_section_is_there_and_leads_to_itself(page):
    heads = page.eval_on_selector_all("h2, h3", "all => all.map(e => e.innerText.trim())")
    for name in (
        "Who gains, who pays", "How long is the tail?", "Training", "Accuracy, class by class", "Which classes flip",
        "What is taken for what", "Calibration", "Other measures", "Is the method doing anything?", "Loss geometry",
        "Cost", "What differs between recipes", "How these numbers were made", "Is the tail at a saddle?",
        "The landscape around the weights", "Do the methods leave the saddle?", "Sharpness, class by class",
    ):  # fmt: skip
        assert name in heads, name
    for link in page.eval_on_selector_all("nav a", "all => all.map(e => e.getAttribute('href'))"):
        assert page.locator(link).is_visible(), link
    changes = page.eval_on_selector_all("table.changes tbody tr", "all => all.map(e => e.innerText.split(/\\s*\\t/))")
    assert ["sam", "stages.0.method", "erm", "sam (rho 0.1)"] in changes


def test_dark_mode_changes_page_and_drawings(page):
    def colours():
        return page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector("svg text")).fill,
            getComputedStyle(document.querySelector("svg [data-bar] path")).fill]"""
        )

    light = colours()
    page.emulate_media(color_scheme="dark")
    assert all(a != b for a, b in zip(light, colours(), strict=True))


def test_paper_has_no_controls_and_light_colours(page):
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator(".pick").is_visible() and not page.locator("nav").first.is_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')") == "#1c1d21"
    folded = "document.querySelectorAll('details[data-paper]:not([open])').length"
    assert page.evaluate(folded) > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(folded) == 0
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 within its margins
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(folded) > 0
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_scripts_everything_is_there(browser, place):
    page = browser.new_page(java_script_enabled=False)
    page.goto(place.as_uri())
    assert page.locator("table.summary tbody tr").count() == 4
    assert not page.locator(".pick").first.is_visible() and page.locator("th button, .legend button").count() == 0
    assert page.locator("svg g[data-bar] > title").count() > 20
    page.close()
