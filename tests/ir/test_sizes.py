from __future__ import annotations

import pytest
import sympy

from prunec.ir.sizes import same_stride

b, n = sympy.symbols("b n", integer=True, positive=True)

# a shape, what a reshape makes of it, and whether its tokens stand where they stood
RESHAPES = {
    "heads split off": ((b, n, 192), (b, n, 3, 64), True),
    "heads joined": ((b, n, 3, 64), (b, n, 192), True),
    "tokens joined with the batch": ((b, n, 64), (b * n, 64), True),
    "tokens taken from the batch": ((b * n, 64), (b, n, 64), True),
    "heads into the batch": ((b, 6, n, 64), (6 * b, n, 64), True),
    "heads out of the batch": ((6 * b, n, 64), (b, 6, n, 64), True),
    "channels joined with the tokens": ((b, n, 64), (b, 64 * n), True),
    "some of them": ((b, n, 64), (b, 16 * n, 4), True),
    "channels taken from the tokens": ((b, 64 * n), (b, n, 64), True),
    "fewer tokens": ((b, 6, n - 5, 64), (6 * b, n - 5, 64), True),
    "tokens after channels": ((b, 64, n), (b, 8, 8, n), True),
    "on no axis, or on two": ((b, n, n), (b, n, n), True),
    "tokens in the place of channels": ((b, 6, n, 64), (6 * b, 64, n), False),
    "the same of fewer": ((b, 6, n - 64, 64), (6 * b, 64, n - 64), False),
    "channels in the place of tokens": ((b, 64, n), (b, n, 64), False),
    "tokens in the place of heads": ((b, n, 8, 64), (b, 8, n, 64), False),
    "joined with the wrong side": ((b, n, 8, 64), (b, 8 * n, 64), True),
    "joined too far": ((b, n, 8, 64), (b, 8, 64 * n), False),
}


@pytest.mark.parametrize("name", RESHAPES)
def test_whether_tokens_stand_as_far_apart_as_before(name: str) -> None:
    before, after, expected = RESHAPES[name]
    assert same_stride([sympy.sympify(s) for s in before], [sympy.sympify(s) for s in after], n) is expected
