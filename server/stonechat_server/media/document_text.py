"""How the model reads a document. A text has no pages:

[Document: report.pdf, 2 pages]
[Page 1]
The text of the page.
[Page 2: no text]
[End of report.pdf]
"""

import re

MAX_NAME = 200
"""Characters of a file's name that the model reads."""
_SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


def written_text(name: str | None, text: str) -> str:
    """A document of text."""
    return f"{head_of(name)}\n{text.strip()}\n{end_of(name)}"


def head_of(name: str | None, num_pages: int | None = None) -> str:
    """The line before a document."""
    name, pages = _shown(name), ""
    if num_pages is not None:
        pages = f", {num_pages} page" if num_pages == 1 else f", {num_pages} pages"
    return f"[Document: {name}{pages}]" if name else f"[Document{pages}]"


def page_of(number: int, *, is_empty: bool) -> str:
    """The line before a page."""
    return f"[Page {number}: no text]" if is_empty else f"[Page {number}]"


def end_of(name: str | None) -> str:
    """The line behind a document."""
    return f"[End of {_shown(name) or 'document'}]"


def _shown(name: str | None) -> str:
    """The name of a file in one line."""
    return _SPACE.sub(" ", name or "")[:MAX_NAME].strip()
