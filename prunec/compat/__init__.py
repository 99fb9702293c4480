"""The only package that touches private or version-dependent PyTorch interfaces (2.11 and later).

Everything else uses the names below, as `compat.NAME`, so a change in PyTorch is dealt with in one place.

trees          nested inputs and outputs
exporting      torch.export
archives       what torch.export.save writes
operators      schemas of ATen operators
fake_tensors   fake tensors, symbolic sizes
typed_calls    what operators make of them
compiling      torch.compile
kernels        CUDA
randomness     seeds
source         whose code a file is
"""

from prunec.compat.archives import *
from prunec.compat.compiling import *
from prunec.compat.exporting import *
from prunec.compat.fake_tensors import *
from prunec.compat.kernels import *
from prunec.compat.operators import *
from prunec.compat.randomness import *
from prunec.compat.source import *
from prunec.compat.trees import *
from prunec.compat.typed_calls import *
