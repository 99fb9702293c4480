"""Every kind of policy on every target at several batches: what takes too long for each run of the suite.

`make matrix` runs it. The cheap cells are in the tests of each target; here are all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._inductor import config

from prunec import targets
from prunec.errors import TargetError
from prunec.ir.program import Planned
from prunec.targets import FileTarget
from tests.targets import cases
from tests.targets.cases import difference, images

pytestmark = pytest.mark.matrix
#: What a target does not run, by the start of its reason.
REFUSED = {
    ("openvino", name): "OpenVINO does not run programs in which images keep different numbers of tokens"
    for name in ("cover", "dynamic static", "dynamic padded", "dynamic packed")
}


#: Whose files take one batch; their own tests run them.
FIXED = ("executorch", "tensorrt")


@pytest.fixture(autouse=True)
def quickly_compiled() -> None:
    """What the C++ compiler makes of the code is as right without its optimisations."""
    config.aot_inductor.compile_wrapper_opt_level = "O0"


@pytest.mark.parametrize("name", ["dense", *cases.CASES])
@pytest.mark.parametrize("target_name", sorted(set(targets.TARGETS) - {"eager", *FIXED}))
def test_a_target_gives_what_the_graph_gives(
    target_name: str, name: str, tmp_path: Path, exported_once: None
) -> None:
    target, program = targets.find(target_name), cases.case(name)
    if missing := target.missing():
        pytest.skip(missing)
    if isinstance(program, Planned) and program.plan.lowering.mode not in target.modes:
        assert (target_name, name) in REFUSED
    if (target_name, name) in REFUSED:
        with pytest.raises(TargetError, match=REFUSED[target_name, name]):
            target.lower(program)
        return
    if isinstance(target, FileTarget):
        target.write(program, tmp_path)
        run = target.read(tmp_path)
    else:
        run = target.lower(program)
    with torch.no_grad():
        for batch in cases.batches(program):
            (found,) = run(images(batch))
            apart = difference(found, program.module(images(batch))[0])
            print(f"{target_name:>9} {name:<15} batch {batch}: {apart:.1e}")
            assert apart < cases.TOLERANCE
