"""The links between the project's documents: `python tests/links.py` names those that lead nowhere.

Addresses outside the repository are not visited: whether they answer says nothing about a change.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def documents(root: Path = ROOT) -> list[Path]:
    """Every page that is written for people."""
    folders = (root, root / ".github", root / "docs", root / "docs" / "guide", root / "docs" / "design")
    return [path for folder in folders for path in sorted(folder.glob("*.md"))]


def broken(root: Path = ROOT) -> list[str]:
    """`page: link` for each link that leads to no file, or to no heading of it."""
    return [
        f"{page.relative_to(root)}: {link}"
        for page in documents(root)
        for link in links(page.read_text(encoding="utf-8"))
        if not leads_somewhere(page, link)
    ]


def links(text: str) -> Iterator[str]:
    """The links of a page that stay in the repository."""
    for link in LINK.findall(CODE.sub("", text)):
        if not re.match(r"[a-z]+:", link):
            yield link


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether the file is there, and the heading in it."""
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return False
    return not heading or heading in anchors(target.read_text(encoding="utf-8"))


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links, as GitHub does."""
    headings = HEADING.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    wrong = broken()
    print("\n".join(wrong) if wrong else f"all links of {len(documents())} documents lead somewhere")
    sys.exit(1 if wrong else 0)
