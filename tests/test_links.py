from __future__ import annotations

from pathlib import Path

from tests import links


def test_every_link_of_the_documents_leads_somewhere() -> None:
    assert len(links.documents()) > 15
    assert links.broken() == []


def test_a_link_to_no_file_or_no_heading_is_found(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "# One page\n[a](other.md) [b](other.md#how-it-is-done) [c](#one-page) [d](https://example.com)\n"
        "[e](gone.md) [f](other.md#gone) [g](#gone) `[h](code.md)`\n```\n[i](code.md)\n```\n"
    )
    (tmp_path / "other.md").write_text("## How it is `done`?\n```\n# gone\n```\n")
    assert links.broken(tmp_path) == [
        "README.md: gone.md", "README.md: other.md#gone", "README.md: #gone",
    ]  # fmt: skip
