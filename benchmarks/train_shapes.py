"""Train the Shapes classifier that prunec ships: one process, one CPU core, well under an hour.

    python benchmarks/train_shapes.py                 # start, or resume a run that was stopped
    python benchmarks/train_shapes.py --steps 50 --out /tmp/try.safetensors --fresh

Four things make it quick. Every patch also learns which of its pixels belong to the object, and the name of
that object (through heads that are thrown away): far more to learn from than one label per image. Most
background patches are left out of most steps, which halves their cost and teaches the model to rest on the
object. The scenes start easy. And Muon took about half the steps of AdamW in a short trial of both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunec.data.shapes import (
    CLASSIFICATION,
    HELD_OUT_SEEDS,
    NUM_CLASSES,
    TRAIN_SEEDS,
    Scenes,
    SceneSpec,
    images,
    normalize,
    scenes,
)
from prunec.data.tiny_vit import WEIGHTS, TinyViT

RESULT = Path(__file__).parent / "results" / "train_shapes.json"
CHECKPOINT = Path(tempfile.gettempdir()) / "prunec_train_shapes.pt"
LOSSES = ("image", "names", "outlines")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a run."""

    steps: int = 3000
    batch: int = 64
    peak_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    loss_weights: tuple[float, float, float] = (1.0, 1.0, 2.0)  # image, patch names, patch outlines
    kept_patches: tuple[int, int] = (24, 48)  # in a step that leaves background out; objects cover fewer
    whole_from: float = 0.75  # from here on every second step sees all patches, before it every eighth
    hard_from: float = 0.4  # from here on, scenes are as hard as those the model is judged on
    seed: int = TRAIN_SEEDS[0]


class Trainee(nn.Module):
    """The classifier and two heads that teach its patch tokens and are not shipped."""

    def __init__(self, outline_after: int = 4) -> None:
        super().__init__()
        self.vit = TinyViT()
        self.outline_after = outline_after
        dim, patch = self.vit.patch_embed.out_channels, self.vit.patch_embed.kernel_size[0]
        self.outline_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, patch * patch))
        self.name_head = nn.Linear(dim, 1 + NUM_CLASSES)
        self._quieten_branches()

    def forward(self, image: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the image [B, classes], its patches [B, K, 1 + classes], their pixels [B, K, p * p]."""
        x = self.vit.embed(image)
        if kept is not None:
            patches = x[:, 1:].gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
            x = torch.cat([x[:, :1], patches], dim=1)
        for block in self.vit.blocks[: self.outline_after]:
            x = block(x)
        outline = self.outline_head(x[:, 1:])
        for block in self.vit.blocks[self.outline_after :]:
            x = block(x)
        x = self.vit.norm(x)
        return self.vit.head(x[:, 0]), self.name_head(x[:, 1:]), outline

    @torch.no_grad()
    def _quieten_branches(self) -> None:
        """Let every block start close to the identity, so that twelve of them train without spikes."""
        for name, weight in self.vit.named_parameters():
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
                weight.mul_(0.2)


def scenes_at(progress: float, recipe: Recipe) -> SceneSpec:
    """Big objects on clean backgrounds first, the real task from ``hard_from`` on."""
    hardness = min(1.0, progress / recipe.hard_from)
    low, high = CLASSIFICATION.radius
    return SceneSpec(
        radius=(high - hardness * (high - low), high),
        clutter=(0, round(hardness * CLASSIFICATION.clutter[1])),
        texture=hardness * CLASSIFICATION.texture,
    )


def rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimisers: list[torch.optim.Optimizer], rate: float) -> None:
    """Give every parameter the same learning rate."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate


def name_targets(made: Scenes, patch: int) -> Tensor:
    """What lies on each patch [B, N]: class + 1 where the object covers a tenth of it, else background."""
    object_share = F.avg_pool2d((made.semantic > 0).float()[:, None], patch).flatten(1)
    return torch.where(object_share > 0.1, made.label[:, None] + 1, 0)


def outline_targets(made: Scenes, patch: int) -> Tensor:
    """Which pixels of each patch belong to the object [B, N, p * p]."""
    return F.unfold((made.semantic > 0).float()[:, None], patch, stride=patch).transpose(1, 2)


def choose_patches(names: Tensor, keep: int) -> Tensor:
    """All patches of the object and random ones of the background [B, keep]."""
    order = torch.rand(names.shape) + (names > 0)
    return order.topk(keep, dim=1).indices


def losses_of(model: Trainee, made: Scenes, kept_patches: tuple[int, int] | None) -> Tensor:
    """Cross-entropies of the image's class, the patches' classes and the patches' pixels [3]."""
    patch = model.vit.image_size // model.vit.grid
    names, outlines = name_targets(made, patch), outline_targets(made, patch)
    kept = None
    if kept_patches is not None:
        low, high = kept_patches
        kept = choose_patches(names, int(torch.randint(low, high + 1, ())))
        names = names.gather(1, kept)
        outlines = outlines.gather(1, kept[..., None].expand(-1, -1, patch * patch))
    image_scores, name_scores, outline_scores = model(normalize(made.image), kept)
    return torch.stack(
        [
            F.cross_entropy(image_scores, made.label),
            F.cross_entropy(name_scores.flatten(0, 1), names.flatten()),
            F.binary_cross_entropy_with_logits(outline_scores, outlines),
        ]
    )


def optimisers_for(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, which learns them in far fewer steps; AdamW for the rest."""
    named = list(model.named_parameters())
    inner = [p for name, p in named if ".blocks." in name and p.ndim == 2]
    chosen = set(map(id, inner))
    outer = [p for _, p in named if id(p) not in chosen]
    return [
        torch.optim.Muon(inner, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def accuracy(model: TinyViT, count: int, seed: int = HELD_OUT_SEEDS[0]) -> float:
    """Share of ``count`` held-out scenes that the model names rightly."""
    right = 0
    for start in range(0, count, 128):
        image, label = images(CLASSIFICATION, seed, start, min(128, count - start))
        right += int((model(normalize(image)).argmax(1) == label).sum())
    return right / count


def save_weights(model: TinyViT, path: Path) -> None:
    """Half precision halves the file; the model is loaded back in single precision."""
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, path)


def losses_at(step: int, model: Trainee, recipe: Recipe) -> Tensor:
    """The three losses on the scenes of this step, which are the same in a resumed run."""
    torch.manual_seed(recipe.seed + step)  # decides which patches are left out
    progress = step / recipe.steps
    made = scenes(scenes_at(progress, recipe), recipe.seed, step * recipe.batch, recipe.batch)
    whole = step % (2 if progress >= recipe.whole_from else 8) == 0
    return losses_of(model, made, None if whole else recipe.kept_patches)


def train(recipe: Recipe, out: Path, checkpoint: Path) -> float:
    """Run, or resume, the recipe to its end; write the weights and return the minutes that it took."""
    torch.manual_seed(recipe.seed)
    model = Trainee()
    optimisers = optimisers_for(model, recipe)
    first, minutes = resume(checkpoint, model, optimisers) if checkpoint.exists() else (0, 0.0)
    begun = time.monotonic() - 60 * minutes
    weights = torch.tensor(recipe.loss_weights)

    for step in range(first, recipe.steps):
        set_rate(optimisers, rate_at(step, recipe))
        losses = losses_at(step, model, recipe)
        model.zero_grad()
        (losses @ weights).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()

        done, minutes = step + 1, (time.monotonic() - begun) / 60
        if done % 50 == 0:
            named = zip(LOSSES, losses.tolist(), strict=True)
            terms = "  ".join(f"{name} {value:.3f}" for name, value in named)
            print(f"step {done:5d}  {minutes:5.1f} min  {terms}", flush=True)
        if done % 250 == 0 or done == recipe.steps:
            print(f"step {done:5d}  held-out accuracy {accuracy(model.vit, 512):.3f}", flush=True)
            save_weights(model.vit, out)
            save_checkpoint(checkpoint, model, optimisers, done, minutes)
    return minutes


def save_checkpoint(
    path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], step: int, minutes: float
) -> None:
    """Write all that ``resume`` needs."""
    states = [optimiser.state_dict() for optimiser in optimisers]
    torch.save({"model": model.state_dict(), "optimisers": states, "step": step, "minutes": minutes}, path)


def resume(path: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Restore a checkpoint; return the step to go on with and the minutes already spent."""
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
        optimiser.load_state_dict(state)
    print(f"resumed at step {saved['step']}", flush=True)
    return saved["step"], saved["minutes"]


def machine() -> dict[str, object]:
    """Where and with what this ran."""
    return {
        "device": f"cpu, {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def judge(path: Path, count: int = 4096) -> dict[str, object]:
    """Size and held-out accuracy of the weights as they are shipped."""
    model = TinyViT().eval()
    model.load_state_dict(load_file(path))
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "held_out_images": count, "held_out_accuracy": accuracy(model, count)}


def main() -> None:
    """Read the command line, train, write the weights and the record of the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--fresh", action="store_true", help="forget an unfinished run")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    if options.fresh:
        options.checkpoint.unlink(missing_ok=True)
    recipe = Recipe(steps=options.steps)
    minutes = train(recipe, options.out, options.checkpoint)
    record = {**machine(), **asdict(recipe), "minutes": round(minutes, 1), **judge(options.out)}
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(record, indent=2) + "\n")
    options.checkpoint.unlink(missing_ok=True)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
