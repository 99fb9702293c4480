"""Wrong rewrites, planted one at a time: each must be caught by a certificate, or refused.

planting    how a mistake gets into a program
subjects    the small programs that it gets into
choosing    mistakes in operations of prunec/ops: which rows go on
moving      rows taken out and put back
combining   rows summed up and merged
reading     what must not be seen
graphs      mistakes in what the passes make: edges, places, counts, what was recognised
modes       mistakes in a lowering
judge       who catches what
"""

from tests.mutants import choosing, combining, graphs, modes, moving, reading

MUTANTS = (
    *choosing.MUTANTS, *moving.MUTANTS, *combining.MUTANTS, *reading.MUTANTS, *graphs.MUTANTS, *modes.MUTANTS,
)  # fmt: skip
SCORING = choosing.SCORING

__all__ = ["MUTANTS", "SCORING"]
