"""The policy language: where tokens are scored, by what, how many stay, and what becomes of the rest.

A policy is data. It is one point in a space whose axes are independent, one model per axis:

    sites     where     before_block | after_attention, at blocks (or none), depths, or between two depths
    scorer    kind      cls_attention | norm | random | mlp (learned)
    selector  kind      top_k: the same count for every image | threshold: as many as each image needs
    fate                drop | fuse | preserve: what is not kept keeps its value and is there at the end
    reactivate          whether every site chooses among all tokens again

Policies are read from YAML, JSON or TOML, or from a plain mapping; the presets are YAML files beside this
module. Every mistake in one is a `PolicyError` that carries the path inside the file, the value found there,
what is allowed, and the nearest names where a name was expected.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from prunec.errors import PolicyError

PRESETS = Path(__file__).parent / "presets"

# A field's description completes the sentence "NAME must be ..." in errors, and documents the JSON schema.
Block = Annotated[int, Field(ge=0)]
Depth = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]

#: Scorers that can rank every token of the stream, also those that no block has seen lately.
_SCORES_ALL = ("norm", "random", "mlp")


class _Model(BaseModel):
    # Strict, or `keep: yes` would quietly mean 1.0 and `keep: "0.5"` would pass.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Sites(_Model):
    """Where tokens are scored and selected: a place inside the block, and which blocks.

    `between: [0.25, 1.0]` means every block from a quarter of the depth to the end.
    """

    where: Literal["before_block", "after_attention"]
    blocks: Annotated[
        tuple[Block, ...] | None,
        Field(strict=False, description="a list of block numbers, counted from 0"),
    ] = None
    depths: Annotated[
        tuple[Depth, ...] | None,
        Field(strict=False, min_length=1, description="a list of fractions of the depth, each in [0, 1)"),
    ] = None

    between: Annotated[
        tuple[Share, Share] | None,
        Field(strict=False, description="two fractions of the depth, such as [0.25, 1.0]"),
    ] = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Sites:
        ways = {"blocks": self.blocks, "depths": self.depths, "between": self.between}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of blocks, depths and between, got {' and '.join(given) or 'none'}")
        return self

    @field_validator("between")
    @classmethod
    def _in_order(cls, between: tuple[float, float] | None) -> tuple[float, float] | None:
        if between is not None and not between[0] < between[1]:
            raise ValueError(f"between must rise from the first fraction to the second, got {list(between)}")
        return between


class Scorer(_Model):
    """What gives each token its score; the higher, the better its chance to stay.

    `mlp` is learned: norm, linear, GELU, linear to two logits, for each token by itself. `hidden` is the
    share of the stream's channels that its hidden layer has.
    """

    kind: Literal["cls_attention", "norm", "random", "mlp"]
    hidden: float | None = Field(default=None, gt=0, le=4, description="in (0, 4]")

    @field_validator("hidden")
    @classmethod
    def _only_of_mlp(cls, hidden: float | None, info: ValidationInfo) -> float | None:
        if hidden is not None and info.data.get("kind") not in (None, "mlp"):
            raise ValueError(f"hidden belongs to the scorer mlp, {info.data['kind']} has no hidden layer")
        return hidden

    @property
    def learned(self) -> bool:
        """Whether it has parameters of its own."""
        return self.kind == "mlp"


class Selector(_Model):
    """How scores become a kept set.

    `keep` is the share of the patch tokens entering a site that survives it, rounded up: of every image with
    top_k, of all images on average with threshold (which is calibrated to that). The length of the stream
    after the site, protected tokens counted in, is then rounded up to a multiple of `multiple_of`, though
    never above the length before it. Where every site chooses among all tokens again (reactivate), the share
    of a site in the second third of `stages: 3` is keep * keep, in the last third keep * keep * keep.
    """

    kind: Literal["top_k", "threshold"]
    keep: float = Field(gt=0, le=1, description="in (0, 1]")
    multiple_of: int = Field(default=1, ge=1, description="a whole number, 1 or more")
    least: int = Field(default=1, ge=1, description="a whole number, 1 or more")
    stages: int = Field(default=1, ge=1, description="a whole number, 1 or more")


class Policy(_Model):
    """A complete, validated policy. Frozen: `override` returns a new one."""

    version: Literal[1]
    name: str = Field(
        pattern=r"^[a-z][a-z0-9_-]*$",
        description="lower-case letters, digits, - and _, starting with a letter",
    )
    summary: str = Field(pattern=r"^[^\n]*\S[^\n]*$", description="one line of text")
    paper: str | None = Field(default=None, description="text that names the paper")
    sites: Sites
    scorer: Scorer
    selector: Selector
    fate: Literal["drop", "fuse", "preserve"]
    reactivate: bool = Field(default=False, description="true or false")

    @field_validator("fate")
    @classmethod
    def _fuse_needs_weights(cls, fate: str, info: ValidationInfo) -> str:
        # The fused token is the sum of the dropped tokens, each times its own score, without normalising.
        # Attention probabilities are non-negative and sum to at most 1, so that sum stays on the scale of one
        # token. A norm grows with the tokens it weighs, and a random score says nothing about them.
        scorer = info.data.get("scorer")
        if fate == "fuse" and scorer is not None and scorer.kind != "cls_attention":
            raise ValueError(
                "fate fuse needs scorer.kind cls_attention: the fused token sums the dropped tokens weighted "
                f"by their scores, which must be shares of attention; {scorer.kind} scores are not"
            )
        selector = info.data.get("selector")
        if fate == "drop" and selector is not None and selector.kind == "threshold":
            raise ValueError(
                "fate drop needs selector.kind top_k: where images keep different numbers of tokens, a mean "
                "over them needs those that were not kept; use preserve"
            )
        if fate == "fuse" and selector is not None and selector.kind != "top_k":
            raise ValueError(
                "fate fuse needs selector.kind top_k: one token stands for a fixed number of others"
            )
        return fate

    @field_validator("reactivate")
    @classmethod
    def _reactivate_needs_all(cls, reactivate: bool, info: ValidationInfo) -> bool:
        fate, scorer = info.data.get("fate"), info.data.get("scorer")
        if reactivate and fate not in (None, "preserve"):
            raise ValueError(f"reactivate needs fate preserve: what {fate} takes away cannot come back")
        if reactivate and scorer is not None and scorer.kind not in _SCORES_ALL:
            raise ValueError(
                f"reactivate needs a scorer of all tokens ({', '.join(_SCORES_ALL)}): {scorer.kind} scores "
                "only those that went through the block before"
            )
        return reactivate

    @model_validator(mode="after")
    def _stages_need_reactivation(self) -> Policy:
        if self.selector.stages > 1 and not self.reactivate:
            raise ValueError("selector.stages needs reactivate: without it every site prunes what is left")
        return self

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Policy) -> Policy:
        """Read a policy.

        Args:
            source: the name of a preset, a path that ends in .yaml, .yml, .json or .toml, or a mapping.

        Raises:
            PolicyError: the name is unknown, the file cannot be read, or its content is not a policy.
        """
        if isinstance(source, Policy):
            return source
        if isinstance(source, str) and "/" not in source and not Path(source).suffix:
            return _preset(source)
        if isinstance(source, str | Path):
            return _from_file(Path(source))
        data = dict(source) if isinstance(source, Mapping) else source
        return _validated(data, where="the value given as policy")

    def override(self, *, keep: float | None = None, blocks: Iterable[int] | None = None) -> Policy:
        """The same policy with another keep rate, or at other blocks (which then replace the depths)."""
        data = self.model_dump()
        if keep is not None:
            data["selector"]["keep"] = keep
        if blocks is not None:
            data["sites"].update(blocks=tuple(blocks), depths=None, between=None)
        return _validated(data, where=f"an override of policy {self.name}")

    def to_yaml(self) -> str:
        """The canonical text: fields in the order of the language, absent ones left out."""
        data = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)

    @property
    def needs(self) -> frozenset[str]:
        """What the model must have for this policy to make sense."""
        needs = {"class token"} if self.scorer.kind == "cls_attention" else set()
        return frozenset(needs | ({"calibration"} if self.calibrated else set()))

    @property
    def calibrated(self) -> bool:
        """Whether it has numbers that images must give it: a learned scorer, a threshold."""
        return self.scorer.learned or self.selector.kind == "threshold"

    def site_blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks of the sites in a model of `depth` blocks: sorted, without repetition.

        Raises:
            PolicyError: a block lies outside the model, or the model has none.
        """
        if depth < 1:
            raise PolicyError(
                "the model has no blocks to prune in",
                where=f"policy {self.name}",
                remedy="choose a model with transformer blocks",
            )
        if self.sites.blocks is not None:
            blocks = self.sites.blocks
        elif self.sites.between is not None:
            first, last = (math.ceil(round(fraction * depth, 9)) for fraction in self.sites.between)
            blocks = tuple(range(first, max(last, first + 1)))
            blocks = tuple(min(block, depth - 1) for block in blocks)
        else:
            # Rounded first, or 0.29 of 100 blocks would be block 28; that may reach 1, hence the last block.
            blocks = tuple(min(math.floor(round(f * depth, 9)), depth - 1) for f in self.sites.depths or ())
        if max(blocks, default=0) >= depth:
            raise PolicyError(
                f"block {max(blocks)} does not exist, the model has blocks 0 to {depth - 1} @ sites.blocks",
                where=f"policy {self.name}",
                remedy="choose blocks of the model, or give depths, which fit every model",
            )
        return tuple(sorted(set(blocks)))


def presets() -> dict[str, Policy]:
    """The policies that ship with prunec, in the order of their names."""
    return {path.stem: _from_file(path) for path in sorted(PRESETS.glob("*.yaml"))}


def nearest(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Up to three of `names` that someone who wrote `name` may have meant, best first."""
    return tuple(difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; nearest: a, b`, ready to end a sentence, or nothing when no name is near."""
    near = nearest(name, names)
    return f"; nearest: {', '.join(near)}" if near else ""


# Reading ----------------------------------------------------------------------------------------------------


def _preset(name: str) -> Policy:
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names:
        raise PolicyError(
            f"there is no policy {name!r}{did_you_mean(name, names)}",
            where="the presets",
            remedy=f"choose one of {', '.join(names)}, or give the path of a .yaml, .json or .toml file",
        )
    return _from_file(PRESETS / f"{name}.yaml")


def _from_file(path: Path) -> Policy:
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise PolicyError(
            f"a policy file ends in {', '.join(_PARSERS)}, got {path.name!r}",
            where=str(path),
            remedy="rename the file, or give the name of a preset: " + ", ".join(presets()),
        )
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(
            f"the policy file cannot be read: {error.strerror}",
            where=str(path),
            remedy="check the path, or give the name of a preset: " + ", ".join(presets()),
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise PolicyError(
            f"the policy file is not valid {path.suffix[1:].upper()}: {_one_line(error)}",
            where=str(path),
            remedy="mend the file at that place",
        ) from error
    return _validated(data, where=str(path))


def _parse_yaml(text: str) -> object:
    return yaml.load(text, Loader=_Loader)


def _parse_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unique)


def _parse_toml(text: str) -> object:
    return _toml().loads(text)


def _toml() -> ModuleType:
    # tomllib came with Python 3.11; its forerunner has the same face.
    for name in ("tomllib", "tomli"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise PolicyError(
        "this Python cannot read TOML",
        where="a policy in a .toml file",
        remedy="pip install tomli, use Python 3.11 or newer, or write the policy as YAML",
    )


_PARSERS: dict[str, Callable[[str], object]] = {
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": _parse_json,
    ".toml": _parse_toml,
}


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping of pairs, refused when a key comes twice: one of the two values would be lost unseen."""
    data: dict[Any, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"the key {key!r} is given twice")
        data[key] = value
    return data


class _Loader(yaml.SafeLoader):
    """Plain YAML, but a key that is given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        _unique((self.construct_object(key, deep=True), None) for key, _ in node.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Plain YAML with lists on one line."""


_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# Mistakes ---------------------------------------------------------------------------------------------------


def _validated(data: object, *, where: str) -> Policy:
    if not isinstance(data, dict):
        raise PolicyError(
            f"a policy is a mapping of keys to values, got {data!r}",
            where=where,
            remedy=f"give the keys {', '.join(Policy.model_fields)}",
        )
    try:
        return Policy.model_validate(data)
    except ValidationError as error:
        mistakes = [_describe(dict(problem)) for problem in error.errors(include_url=False)]
        place = "the place" if len(mistakes) == 1 else "each place"
        raise PolicyError(
            "\n".join(mistakes), where=where, remedy=f"correct {place} named after the @"
        ) from error


def _describe(problem: dict[str, Any]) -> str:
    """One mistake, as `keep must be in (0, 1], got 1.5 @ selector.keep`."""
    kind, value, loc = problem["type"], problem["input"], problem["loc"]
    if kind == "invalid_key":  # not a string, such as 1 or yes
        loc = (*loc[:-1], str(value))
    path = _path(loc) or "the top level"
    if kind == "value_error":
        return f"{problem['ctx']['error']} @ {path}"
    *parents, name = (part for part in loc if isinstance(part, str))  # an element goes by its list's name
    fields = _fields(parents)
    if name not in fields:
        allowed = f"allowed: {', '.join(fields)}{did_you_mean(name, fields)}"
        return f"unknown key {name!r}, {allowed} @ {path}"
    if kind == "missing":
        return f"{name} is missing, it must be {_allowed(fields[name])} @ {path}"
    hint = did_you_mean(value, _choices(fields[name])) if isinstance(value, str) else ""
    return f"{name} must be {_allowed(fields[name])}, got {value!r}{hint} @ {path}"


def _path(loc: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _fields(parents: Iterable[str]) -> dict[str, FieldInfo]:
    """The fields of the model that stands at the end of `parents`."""
    model: type[BaseModel] = Policy
    for name in parents:
        model = cast("type[BaseModel]", model.model_fields[name].annotation)
    return model.model_fields


def _allowed(field: FieldInfo) -> str:
    """What may stand in a field: its own words, or its keys, or its choices."""
    if field.description:
        return field.description
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return f"a mapping with the keys {', '.join(field.annotation.model_fields)}"
    *others, last = _choices(field)
    return f"{', '.join(others)} or {last}" if others else last


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return tuple(map(str, get_args(field.annotation)))
