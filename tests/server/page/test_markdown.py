"""The page's own modules that draw text, called in a browser."""

from collections.abc import Iterator

import pytest

from tests.server.live_server import LiveServer

from .driver import Browser, Page, expect, open_tab


@pytest.fixture(scope="module")
def page(browser: Browser, open_server: LiveServer) -> Iterator[Page]:
    """One tab for all: these tests leave it as it is."""
    with open_tab(browser, open_server) as tab:
        yield tab


OUTSIDE = 'target="_blank" rel="noopener noreferrer"'
TASKS = (
    '<ul><li class="task"><input type="checkbox" disabled="" aria-label="Task"> a</li>'
    '<li class="task"><input type="checkbox" disabled="" aria-label="Task"> b</li></ul>'
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# One\ntwo\n\nthree", "<h2>One</h2><p>two</p><p>three</p>"),
        ("a **b _c_** `d*e*`", "<p>a <strong>b <em>c</em></strong> <code>d*e*</code></p>"),
        ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
        ("snake_case_name 2*3*4", "<p>snake_case_name 2<em>3</em>4</p>"),
        ("1 < 2 & *", "<p>1 &lt; 2 &amp; *</p>"),
        ("***", "<hr>"),
        ("## One ##", "<h3>One</h3>"),
        ("# C#", "<h2>C#</h2>"),
        ("# #", "<h2></h2>"),
        (r"[a\]b](x:y)", "<p>[a]b](x:y)</p>"),
        ("- [x] a\n- [ ] b", TASKS),
        ("a $5 and $6 b", "<p>a $5 and $6 b</p>"),
        (r"`\(x\)`", r"<p><code>\(x\)</code></p>"),
        (
            "|a|b|\n|:-|-:|\n|1|",
            '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th>'
            '<th class="right">b</th></tr></thead>'
            '<tbody><tr><td>1</td><td class="right"></td></tr></tbody></table></div>',
        ),
        ("a|b\n|-x", "<p>a|b<br>|-x</p>"),
        (
            "(see https://a.b/c_d(e)?x=1&y.) `http://c`",
            f'<p>(see <a href="https://a.b/c_d(e)?x=1&amp;y" {OUTSIDE}>'
            "https://a.b/c_d(e)?x=1&amp;y</a>.) <code>http://c</code></p>",
        ),
        (
            "[http://a](http://b) http:// ftp://c",
            f'<p><a href="http://b" {OUTSIDE}>http://a</a> http:// ftp://c</p>',
        ),
    ],
)
def test_markdown(page: Page, source: str, expected: str) -> None:
    html = page.evaluate(
        """async (source) => {
          const { drawMarkdown } = await import('./page/markdown.js');
          const box = document.createElement('div');
          drawMarkdown(box, source);
          return box.innerHTML.replaceAll('\\n', '');
        }""",
        source,
    )
    assert html == expected


MANY = 1_000_000
HOSTILE = {
    "a link": ["[", r"\a ", 100_000, ""],
    "an escape": ["[", "\\\\", 100_000, "]"],
    "a heading": ["# ", " a#  ", 100_000, "\u2028b"],
    "a heading's marks": ["# a", "#", MANY, "b"],
    "a fence": ["```", " ", MANY, "`"],
    "a fence of tildes": ["", "~", MANY, "`"],
    "an item": ["- ", " ", MANY, "a\u2028b"],
    "a table's rule": ["a|b\n", " ", MANY, "x"],
    "a table's end": ["a|b\n|-", " ", MANY, "x"],
    "a table's width": ["|" * 30_000 + "\n" + "|-" * 30_000 + "\n", "|\n", 30_000, ""],
    "code": ["`" * 300_000, "a", 300_000, ""],
    "many nodes": ["", "a\n", 150_000, ""],
    "notes in a line": ["", "^[", 200_000, ""],
    "notes in notes": ["x", "^[a", 200_000, "]" * 200_000],
    "addresses": ["", "http://", 150_000, ""],
    "schemes": ["", "http:", 150_000, ""],
    "brackets of an address": ["http://a", "(]", 100_000, ""],
    "open environments": ["", "\\begin{align}a\n\n", 15_000, ""],
    "open formulas": ["", "\\[a\n", 30_000, ""],
    "formulas before text": ["", "\\[a\n", 900, "\\] b\n" * 100],
}
"""A start, a piece, how often the piece comes, and an end."""


def test_environments_of_mathematics(page: Page) -> None:
    html = page.evaluate(
        """async (source) => {
          const { drawMarkdown } = await import('./page/markdown.js');
          const box = document.createElement('div');
          drawMarkdown(box, source);
          return [box.querySelectorAll('.math mtr').length, box.lastElementChild.outerHTML];
        }""",
        "So:\n\\begin{align*}\na &= b \\\\\nc &= d\n\\end{align*}\nend",
    )
    assert html == [2, "<p>end</p>"]


def render(page: Page, start: str, piece: str, count: int, end: str) -> int:
    """Render a text that the page itself repeats. Returns the number of blocks."""
    number: int = page.evaluate(
        """async ([start, piece, count, end]) => {
          const { drawMarkdown } = await import('./page/markdown.js');
          const box = document.createElement('div');
          drawMarkdown(box, start + piece.repeat(count) + end);
          return box.childNodes.length;
        }""",
        [start, piece, count, end],
    )
    return number


@pytest.mark.parametrize("name", list(HOSTILE))
def test_markdown_takes_time_linear_in_the_length(page: Page, name: str) -> None:
    """A rule that backtracks would not come to an end: it needs 10^11 steps or more."""
    assert render(page, *HOSTILE[name]) > 0


def test_what_is_read_again_and_again_is_bounded(page: Page) -> None:
    """A quotation may end after each of its lines, and then its rest is read again. All footnotes
    are copied for each of them."""
    numbers = range(600)
    uses = " ".join(f"[^{i}]" for i in numbers)
    notes = "\n".join(f"[^{i}]: a" for i in numbers)
    counts = page.evaluate(
        """async (source) => {
          const { drawMarkdown } = await import('./page/markdown.js');
          const box = document.createElement('div');
          drawMarkdown(box, source);
          return ['blockquote', 'sup', 'section li'].map((n) => box.querySelectorAll(n).length);
        }""",
        "> a\n" * 600 + f"\n{uses}\n\n{notes}",
    )
    assert counts == [2, 500, 500]


def test_code_that_cannot_be_coloured_holds_up_nothing(page: Page) -> None:
    """The rules for C# need minutes for this text. The worker is ended, and colours other code."""
    page.evaluate(
        """async (hostile) => {
          const { drawMarkdown } = await import('./page/markdown.js');
          const box = document.createElement('div');
          box.id = 'coloured';
          document.body.append(box);
          drawMarkdown(box, '```csharp\\n' + hostile + '\\n```\\n```python\\npass\\n```');
        }""",
        "a " * 24_000,
    )
    expect(page.locator("#coloured .hljs-keyword")).to_have_text(["pass"])
    assert page.locator("#coloured pre").first.inner_text().startswith("a a a")
    page.evaluate("document.getElementById('coloured').remove()")


def test_markdown_renders_any_text(page: Page) -> None:
    for piece in ("*", "_a", "[", "`", "> ", "- ", "**a ", "|-", "![](", "<", "  - ", "\\("):
        assert render(page, "", piece, 24_000, "") > 0
        assert render(page, "", piece + "\n", 4_800, "") > 0
