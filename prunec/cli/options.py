"""The options that commands share. Nothing here needs torch: the help of a command comes at once."""

from __future__ import annotations

from typing import Annotated

import typer

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="timm:ID, hf:ORG/NAME, pkg.mod:callable, a file, shapes")
]
ArchOption = Annotated[
    str | None, typer.Option("--arch", metavar="SOURCE", help="the model that a file of weights is for")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="unpickle any .pt or .pt2 file, and run any code that is in it")
]
ExampleOption = Annotated[
    str | None,
    typer.Option(
        "--example",
        metavar="SHAPES|FILE",
        help="an input: 2x3x224x224, pixel_values=2x3x224x224, or tensors in a .safetensors file",
    ),
]
ImageSizeOption = Annotated[
    str | None, typer.Option("--image-size", metavar="N|HxW", help="pixels of the model's input")
]
MeanOption = Annotated[
    str | None, typer.Option("--mean", metavar="R,G,B", help="what is subtracted from pictures in 0..1")
]
StdOption = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", help="what pictures are divided by afterwards")
]
CropOption = Annotated[
    float | None, typer.Option("--crop", help="share of the scaled picture that the centre crop keeps")
]
SubmoduleOption = Annotated[
    str | None,
    typer.Option("--submodule", metavar="PATH", help="only this part, as in model.named_modules()"),
]
PolicyOption = Annotated[
    str, typer.Option("--policy", "-p", metavar="NAME|FILE", help="a preset or a policy file")
]
PolicyToPlan = Annotated[
    str | None,
    typer.Option(
        "--policy", "-p", metavar="NAME|FILE|auto", help="a preset or a policy file; auto: the best preset"
    ),
]
PoliciesOption = Annotated[
    str | None, typer.Option("--policies", metavar="A,B,C", help="several, of which the best is chosen")
]
PolicyOrAuto = Annotated[
    str,
    typer.Option(
        "--policy",
        "-p",
        metavar="NAME|FILE|auto",
        help="a preset or a policy file; auto: the preset that loses least at a goal, or at --keep",
    ),
]
KeepOption = Annotated[
    float | None, typer.Option("--keep", help="share of the patch tokens that survives all sites")
]
BlocksOption = Annotated[
    str | None, typer.Option("--blocks", metavar="3,6,9", help="blocks that have a site")
]
RestoreOption = Annotated[
    str | None,
    typer.Option("--restore", metavar="HOW", help="how tokens come back for a head that reads all of them"),
]
ModeOption = Annotated[
    str | None,
    typer.Option("--mode", metavar="MODE", help="static, padded, packed or masked; what suits, if left out"),
]
BucketsOption = Annotated[
    str | None, typer.Option("--buckets", metavar="64,128", help="lengths to round padded batches up to")
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="tokens that a packed batch may have at most")
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target", "-t", help="where it is to run: see `prunec targets`; optimize: auto, the fastest"
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        "--precision", metavar="fp32|bf16|fp16|int8", help="after pruning; used only where it is faster"
    ),
]
ImagesOption = Annotated[str | None, typer.Option("--images", metavar="DIR", help="images to measure on")]
BatchOption = Annotated[int, typer.Option("--batch", min=1, help="images at a time when latency is measured")]
RoundsOption = Annotated[int, typer.Option("--rounds", min=5, help="interleaved rounds of the measurement")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="compute threads (CPU)")]
CalibrateOption = Annotated[
    bool,
    typer.Option("--calibrate/--no-calibrate", help="--no-calibrate fits no learned parts: for timing only"),
]
OutputOption = Annotated[
    str | None, typer.Option("--output", "-o", metavar="OUT", help="folder of the artefact")
]
LatencyOption = Annotated[
    float | None,
    typer.Option("--latency", metavar="SHARE", help="plan: at most this share of the dense model's time"),
]
SpeedupOption = Annotated[
    float | None, typer.Option("--speedup", metavar="TIMES", help="plan: at least so many times as fast")
]
MaxDropOption = Annotated[
    float | None,
    typer.Option("--max-drop", metavar="LOSS", help="plan: the fastest that diverges no more from dense"),
]
SitesOption = Annotated[int, typer.Option("--sites", min=1, help="plan: how many sites at most")]
FirstOption = Annotated[
    int, typer.Option("--first", min=1, help="plan: the first block that may have a site")
]
FastOption = Annotated[
    bool, typer.Option("--fast", help="plan: estimate what is lost from one pass of the dense model")
]
TableOption = Annotated[
    str | None,
    typer.Option("--latency-table", metavar="FILE", help="plan by this table, see `prunec bench --table`"),
]
RequireOption = Annotated[
    bool, typer.Option("--require-speedup", help="exit with code 5 when pruning does not pay here")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="write the artefact even if its outputs are worse than zeros")
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric", metavar="PKG.MOD:FN", help="a metric of your own: FN(output, labels or None) -> number"
    ),
]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="do not load pretrained weights")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
