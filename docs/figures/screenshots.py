"""Pictures of a report as a browser shows it, on a screen and on a phone: `make screenshots`, then look at them."""

from pathlib import Path

from playwright.sync_api import sync_playwright

from flattail import report, runs

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "results" / "cifar10-lt-16px"
SHOWN = ("ce", "ce-sam", "ce-drw", "ce-drw-sam", "ldam-drw")
SCREENS = {"report.png": (1100, 1000), "report-phone.png": (390, 844)}  # file -> width, height


def main(out: Path, chromium: str) -> None:
    """Write the page beside the pictures, and the pictures."""
    page = report.build(runs.find([RUNS / name for name in SHOWN]), out / "report.html")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, (width, height) in SCREENS.items():
            shown = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            shown.goto(page.as_uri())
            shown.screenshot(path=out / name)
            shown.close()
        browser.close()


if __name__ == "__main__":
    import shutil
    import tempfile

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("there is no chromium, chromium-browser or google-chrome")
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), found)
        for each in SCREENS:
            shutil.copy(Path(folder) / each, HERE / each)
