"""The page in Chromium: no request leaves, nothing complains, tables sort, a phone and the dark are served."""

import pytest
from PIL import Image

from prograd_fast.report import write_page
from tests.report.browser import CHROMIUM, Browser
from tests.report.page_records import HOSTILE, evaluation, grid_record, run_record, write

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# WCAG's contrast of each text and what is behind it, where it is less than it should be
CONTRAST = """
(() => {
  const parse = (text) => {
    const numbers = text.match(/[\\d.e-]+/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((x) => x * scale), numbers.length > 3 ? numbers[3] : 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = (element) => {
    if (!element) return parse(getComputedStyle(document.documentElement).backgroundColor)[3]
      ? parse(getComputedStyle(document.documentElement).backgroundColor) : [255, 0, 255, 1];
    const own = parse(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(element.parentElement));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script, title")) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.closest("svg") ? style.fill : style.color);
    const ground = behind(element);
    const [a, b] = [light(over(ink, ground)), light(ground)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) bad.push([walker.currentNode.data, contrast]);
  }
  return bad;
})()
"""
WIDE = """
[...document.querySelectorAll("body *")].filter((element) => {
  const frame = element.closest(".scroll");
  return (!frame || frame === element) && element.getBoundingClientRect().right > innerWidth + 0.5;
}).map((element) => element.outerHTML.slice(0, 100))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory, shapes_dir):
    """Two runs, one of which has hostile names and many classes, and a comparison."""
    root = tmp_path_factory.mktemp("page")
    files = sorted(file.relative_to(shapes_dir).as_posix() for file in shapes_dir.rglob("*.png"))
    few = evaluation([*HOSTILE, "b10", "b9"], len(files), files)
    many = evaluation([f"{'long-name-' * 12}{i} {HOSTILE[i % 4]}" for i in range(40)], 400)
    records = [run_record({"all": few, HOSTILE[0]: few}, shapes_dir), run_record({"all": many}), grid_record()]
    folders = [write(root / f"folder{i}", record) for i, record in enumerate(records)]
    Image.new("RGB", (1200, 700), "white").save(folders[2] / "shots.png")
    write_page(folders, root / "report.html")
    return root / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_page_is_quiet_fits_and_can_be_read(width, dark, browser, page):
    browser.open(page, width, dark)
    browser.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert browser.run("innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(WIDE) == []
    assert browser.run(CONTRAST) == []
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert browser.run("[...document.images].every((image) => image.complete && image.naturalWidth)")
    assert [address for address in browser.requests if not address.startswith("data:image/")] == [page.as_uri()]
    assert browser.complaints == []
    assert browser.run("document.scripts.length") == 1


def _column(browser, table, column):
    cells = f"[...document.querySelectorAll('table')[{table}].tBodies[0].rows]"
    return browser.run(f"{cells}.map((row) => row.cells[{column}].textContent)")


def _table_with(browser, header):
    """Index of the first table that has a column of this name, and the column's."""
    headers = browser.run(
        "[...document.querySelectorAll('table')].map((t) => [...t.tHead.rows[0].cells].map((c) => c.textContent))"
    )
    return next((i, names.index(header)) for i, names in enumerate(headers) if header in names)


def test_tables_sort_by_click_and_by_keyboard(browser, page):
    browser.open(page)
    table, column = _table_with(browser, "accuracy %")
    button = f"document.querySelectorAll('table')[{table}].tHead.rows[0].cells[{column}].querySelector('button')"
    before = _column(browser, table, column)
    browser.run(f"{button}.click()")
    falling = _column(browser, table, column)
    assert falling == sorted(before, key=float, reverse=True) != before
    assert browser.run(f"{button}.parentElement.ariaSort") == "descending"
    browser.run(f"{button}.focus()")
    browser.press("Enter")
    assert _column(browser, table, column) == sorted(before, key=float)
    assert browser.run(f"{button}.parentElement.ariaSort") == "ascending"
    browser.press(" ")
    assert _column(browser, table, column) == falling


def test_texts_sort_as_people_count_and_one_column_is_marked(browser, page):
    browser.open(page)
    table, _ = _table_with(browser, "accuracy %")
    cells = f"document.querySelectorAll('table')[{table}].tHead.rows[0].cells"
    browser.run(f"{cells}[1].querySelector('button').click()")
    browser.run(f"{cells}[0].querySelector('button').click()")
    assert _column(browser, table, 0)[-2:] == ["b9", "b10"]
    assert browser.run(f"[...{cells}].filter((cell) => cell.ariaSort).length") == 1


def test_headers_are_reached_by_keyboard(browser, page):
    browser.open(page)
    reached = []
    for _ in range(8):
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.closest('thead') ? document.activeElement.textContent : ''"))
    assert {"run", "method"} <= set(reached)
