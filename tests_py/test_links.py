"""Links of the documentation and of the pages beside it. `make docs` checks those between pages of the site."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^()\s]+)\)|<(https?://[^>\s]+)>")
CODE = re.compile(r"^( *)```.*?^\1```$|``.*?``|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Where the page's links lead; what is in code is none."""
    return [first or second for first, second in LINK.findall(CODE.sub("", page.read_text()))]


def headings(page: Path) -> set[str]:
    """The names that a page's headings have as the end of a link."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_to_the_outside_are_well_formed(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            assert parts.scheme == "https", link
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), link
            assert not parts.netloc.endswith(("example.com", "example.org", ".invalid", ".test")), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=ids)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if not parts.scheme:
            target = page.parent / parts.path if parts.path else page
            assert target.exists(), link
            assert not parts.fragment or parts.fragment in headings(target), link
