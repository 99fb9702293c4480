"""What a policy leaves of a ViT-S/16 at 224 pixels, in closed form: the table in docs/guide/policies.md."""

from __future__ import annotations

from prunec.policy.policy import Policy, presets
from prunec.policy.site_plan import Plan, make_plan
from tests.planner.anatomies import anatomy

DEPTH, PATCHES, WIDTH = 12, 196, 384


def plan_of(policy: Policy) -> Plan:
    """The policy on a ViT-S; one that restores by canvas on a segmenter of that size."""
    read = "patches" if policy.restored == "canvas" else "class token"
    return make_plan(policy, anatomy(depth=DEPTH, grid=PATCHES, head=read))


def flops(plan: Plan) -> float:
    """Multiplications in the blocks on slices of the plan's lengths: no scoring, nothing else left out."""
    total, tokens = 0.0, 1 + PATCHES
    for block in range(DEPTH):
        here = {site.where: site.leaves for site in plan.sites if site.block == block}
        tokens = 1 + PATCHES if block == plan.rejoin else here.get("before_block", tokens)
        total += 4 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH  # projections, and attention
        tokens = here.get("after_attention", tokens)
        total += 8 * tokens * WIDTH**2  # the MLP
    return total


def row(name: str, keep: float) -> str:
    """A line of the table: what is left behind the last site by default and with `keep`, and the FLOPs."""
    dense = flops(plan_of(Policy.load("none")))
    own = plan_of(Policy.load(name))
    if not own.sites:
        return f"| `{name}` | 0 | {PATCHES} | {flops(own) / dense:.0%} | no sites | |"
    cells = [f"`{name}`", str(len(own.sites))]
    for plan in (own, plan_of(Policy.load(name, keep_per_site=keep))):
        most = "" if all(site.known for site in plan.sites) else "≤ "
        cells += [f"{most}{plan.sites[-1].keep}", f"{most}{flops(plan) / dense:.0%}"]
    return f"| {' | '.join(cells)} |"


def table(keep: float = 0.7) -> list[str]:
    """All lines of the table."""
    return [row(name, keep) for name in presets()]


if __name__ == "__main__":
    print("\n".join(table()))
