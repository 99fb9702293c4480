"""Make a timm model faster: transform, compare, compile.

python examples/quickstart.py [MODEL]
"""

from __future__ import annotations

import sys

import timm
import torch

import prunec
from prunec.measure import cost, evaluate

name = sys.argv[1] if len(sys.argv) > 1 else "vit_tiny_patch16_224"
model = timm.create_model(name, pretrained=False).eval()  # pretrained=True when there is a network
fast = prunec.transform(model, policy=prunec.Policy.load("evit", keep=0.5))
print(f"{name} with fewer tokens:")
for site in fast.program.plan.sites:
    print(f"  {site}")

# for yours: from prunec.data.images import load_images
images = torch.randn(4, *model.pretrained_cfg["input_size"])
print("pruned against dense:", evaluate.compare({"dense": model, "pruned": fast}, images).pruned)

compiled = {"dense": torch.compile(model), "pruned": torch.compile(fast)}
calls = {kind: (lambda run=run: run(images)) for kind, run in compiled.items()}
timings = cost.measure(calls, device=images.device, rounds=5)
for kind, timing in timings.items():
    print(f"{kind:>6}, compiled: {1e3 * timing.median:.1f} ms for {len(images)} images")
print(f"speed-up: {cost.ratio(timings, 'dense', 'pruned'):.2f}")
