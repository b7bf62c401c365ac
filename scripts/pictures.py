"""Take the pictures of the README: the page with an answer, and a report of `stonechat bench`.

Needs a running server with the default model, Chromium and the playwright package.

    python scripts/pictures.py http://127.0.0.1:8000/ report.html docs/images
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, ViewportSize, sync_playwright

QUESTION = "Write a Python function that finds the longest word in a text."
SIZE = ViewportSize(width=1100, height=680)


def picture_of_page(browser: Browser, url: str, target: Path) -> None:
    """Ask a question on the page and show the probabilities of the answer's tokens beside it."""
    page = browser.new_page(viewport=SIZE, color_scheme="light")
    page.goto(url)
    page.wait_for_selector("#model option:not([value=''])", state="attached")
    page.click("#toggle-panel")
    fields = {"temperature": "0.7", "seed": "7", "max_completion_tokens": "160", "n": "2"}
    for name, value in fields.items():
        page.fill(f"#field-{name}", value)
    page.fill("#prompt", QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector(".pick", timeout=120_000)
    page.click("#toggle-panel")
    page.get_by_role("button", name="Tokens", exact=True).nth(1).click()
    page.evaluate("document.getElementById('log').scrollTop = 0")
    page.screenshot(path=target)


def picture_of_report(browser: Browser, report: Path, target: Path) -> None:
    """Show the top of a report, down to the end of its first charts."""
    page = browser.new_page(viewport={"width": 1100, "height": 800}, color_scheme="light")
    page.goto(report.resolve().as_uri())
    page.screenshot(path=target)


def main() -> None:
    """Take both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        picture_of_page(browser, arguments.url, arguments.folder / "page.png")
        picture_of_report(browser, arguments.report, arguments.folder / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
