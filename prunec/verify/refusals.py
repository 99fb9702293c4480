"""How a program that does not hold is refused."""

from __future__ import annotations

from typing import NoReturn

from prunec.errors import VerificationError
from prunec.site_plan import Site

#: What to do about a fault of the compiler.
REPORT = "the model was not changed and nothing was returned; please report the model's name"


def refuse(site: Site, what: str, image: int | None = None) -> NoReturn:
    """The error that says what is wrong with the rows that a site lets go on."""
    whose = "" if image is None else f" of image {image}"
    raise VerificationError(f"the rows{whose} that go on {what}", where=f"site {site}", remedy=REPORT)
