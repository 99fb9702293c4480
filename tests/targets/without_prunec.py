"""Run by itself, in a process where prunec cannot be imported: opens each file of a folder and compares.

    python -I without_prunec.py FOLDER      prints {file: largest relative difference} as JSON

Beside `NAME.pt2` stands `NAME.expected`: a list of (images, output) of the program itself.
"""

import json
import sys
import warnings
from pathlib import Path

sys.modules["prunec"] = None  # whoever imports it gets an ImportError
warnings.simplefilter("ignore")

import torch  # noqa: E402


def difference(path: Path) -> float:
    """The largest difference of any batch, relative to the largest output."""
    model = torch.export.load(path).module()
    worst = 0.0
    with torch.no_grad():
        for images, expected in torch.load(path.with_suffix(".expected"), weights_only=True):
            found = model(images)
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


print(json.dumps({path.stem: difference(path) for path in sorted(Path(sys.argv[1]).glob("*.pt2"))}))
