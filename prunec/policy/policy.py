"""Policies: where tokens are scored, by what, how many stay, and what becomes of the rest.

A policy is data, in the words of `language.py`. Policies are read from YAML, JSON or TOML, or from a plain
mapping; the presets are YAML files beside this module. Every mistake in one is a `PolicyError` that carries
the path inside the file, the value found there, what is allowed, and the nearest names where a name was
expected.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import PrivateAttr, ValidationError

from prunec import documents
from prunec.errors import PolicyError, did_you_mean, shown
from prunec.policy.mistakes import described
from prunec.policy.rules import Rules, Step

#: Beside `keep`, the rate of a step that had none: any, so that all its sites take the same share.
ALIKE = 0.5
PRESETS = Path(__file__).parent / "presets"


class Policy(Rules):
    """A complete, validated policy. Frozen: `override` returns a new one."""

    _overridden: tuple[str, ...] = PrivateAttr(())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.model_dump() == other.model_dump()

    __hash__ = Rules.__hash__

    @property
    def overridden(self) -> tuple[str, ...]:
        """What `override` changed of it: names of its arguments."""
        return self._overridden

    @classmethod
    def load(
        cls,
        source: PolicyLike,
        *,
        keep: float | None = None,
        keep_per_site: float | None = None,
        blocks: Iterable[int] | None = None,
        restore: str | None = None,
        where: str = "the value given as policy",
    ) -> Policy:
        """Read a policy, such as `Policy.load("evit", keep=0.5, blocks=(3, 6, 9))`.

        Args:
            source: the name of a preset, a path that ends in .yaml, .yml, .json or .toml, or a mapping.
            keep: the share of the patch tokens that survives all sites, as for `override`.
            keep_per_site: the share that survives one site, as for `override`.
            blocks: in place of the policy's own, as for `override`.
            restore: in place of the policy's own, as for `override`.
            where: what errors name as the place of a mapping.

        Raises:
            PolicyError: the name is unknown, the file cannot be read, or its content is not a policy.
        """
        loaded = _read(source, where)
        given = {"keep": keep, "keep_per_site": keep_per_site, "blocks": blocks, "restore": restore}
        if all(value is None for value in given.values()):
            return loaded
        return loaded.override(keep=keep, keep_per_site=keep_per_site, blocks=blocks, restore=restore)

    def override(
        self,
        *,
        keep: float | None = None,
        keep_per_site: float | None = None,
        blocks: Iterable[int] | None = None,
        sites: Mapping[str, Any] | None = None,
        restore: str | None = None,
    ) -> Policy:
        """The same policy with another keep rate, or at other sites; each for all its steps.

        Args:
            keep: the share of the patch tokens that survives all sites. It means the same for every policy,
                however many sites that has; the policy's own rates say how much each of them takes.
            keep_per_site: the share of the patch tokens entering a site that survives it, in place of
                whatever rate or threshold the policy gives.
            blocks: the blocks of the sites, in place of `blocks`, `depths` or `between`.
            sites: the whole axis, as it stands in a policy file; instead of `blocks`.
            restore: how tokens come back for a head that reads all of them.
        """
        where = f"an override of policy {self.name}"
        if blocks is not None and sites is not None:
            raise PolicyError("blocks and sites both say where", where=where, remedy="give one of them")
        if keep is not None and keep_per_site is not None:
            raise PolicyError(
                "keep and keep_per_site both say how many stay", where=where, remedy="give one of them"
            )
        data = self.model_dump()
        if keep is not None or keep_per_site is not None:
            data["keep"] = keep
        if restore is not None:
            data["restore"] = restore
        for step in (data, *data["then"]):
            if keep_per_site is not None or (keep is not None and not _has_rate(step["selector"])):
                kind = "threshold" if step["selector"]["kind"] == "adaptive" else step["selector"]["kind"]
                step["selector"].update(kind=kind, keep_per_site=keep_per_site or ALIKE, remove=None, at=None)
            if blocks is not None:
                step["sites"].update(blocks=tuple(blocks), depths=None, between=None)
            if sites is not None:
                step["sites"] = dict(sites)
        made = _validated(data, where=where)
        if keep not in (None, 1) and not any(step.sites.blocks != () for step in made.steps):
            raise PolicyError(
                "keep has no effect: the policy has no sites", where=where, remedy="leave keep out"
            )
        given = {
            "keep": keep,
            "keep_per_site": keep_per_site,
            "blocks": blocks,
            "sites": sites,
            "restore": restore,
        }
        changed = [name for name, value in given.items() if value is not None]
        made._overridden = tuple(dict.fromkeys((*self._overridden, *changed)))
        return made

    def to_yaml(self) -> str:
        """The canonical text: fields in the order of the language, absent ones left out."""
        data = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)

    def as_dict(self) -> dict[str, Any]:
        """Its fields, and what follows from them: needs and fits."""
        return {**self.model_dump(mode="json"), "needs": sorted(self.needs), "fits": list(self.fits)}

    def site_blocks(self, depth: int) -> tuple[int, ...]:
        """The blocks that have a site in a model of `depth` blocks: sorted, without repetition."""
        return tuple(sorted({block for step in self.steps for block in self.blocks_of(step, depth)}))

    def blocks_of(self, step: Step, depth: int) -> tuple[int, ...]:
        """The blocks of one step's sites in a model of `depth` blocks: sorted, without repetition.

        Raises:
            PolicyError: a block lies outside the model, or the model has none.
        """
        if depth < 1:
            raise PolicyError(
                "the model has no blocks to prune in",
                where=f"policy {self.name}",
                remedy="choose a model with transformer blocks",
            )
        sites = step.sites
        if sites.blocks is not None:
            blocks = sites.blocks
        elif sites.between is not None:
            first, last = (math.ceil(round(fraction * depth, 9)) for fraction in sites.between)
            blocks = tuple(range(first, max(last, first + 1)))
            blocks = tuple(min(block, depth - 1) for block in blocks)
        else:
            # Rounded first, or 0.29 of 100 blocks would be block 28; that may reach 1, hence the last block.
            blocks = tuple(min(math.floor(round(f * depth, 9)), depth - 1) for f in sites.depths or ())
        if max(blocks, default=0) >= depth:
            raise PolicyError(
                f"block {max(blocks)} does not exist, the model has blocks 0 to {depth - 1} @ sites.blocks",
                where=f"policy {self.name}",
                remedy="choose blocks of the model, or give depths, which fit every model",
            )
        return tuple(sorted(set(blocks)))


def _has_rate(selector: Mapping[str, Any]) -> bool:
    """Whether a selector says how many stay by a share, not by a value on the scorer's scale."""
    return selector["keep_per_site"] is not None or selector["remove"] is not None


#: What is taken for a policy: one, the name of a preset, a file, or a mapping.
PolicyLike = Policy | str | Path | Mapping[str, Any]


def presets() -> dict[str, Policy]:
    """The policies that ship with prunec, in the order of their names."""
    return {name: _preset(name) for name in _preset_names()}


def schema() -> dict[str, Any]:
    """The JSON Schema of a policy file: for editors, and for programs that write policies."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Policy.model_json_schema()}


# Reading ----------------------------------------------------------------------------------------------------


def _read(source: PolicyLike, where: str) -> Policy:
    if isinstance(source, Policy):
        return source
    if isinstance(source, str) and "/" not in source and not Path(source).suffix:
        return _preset(source)
    if isinstance(source, str | Path):
        return _from_file(Path(source))
    return _validated(dict(source) if isinstance(source, Mapping) else source, where=where)


def _preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _preset(name: str) -> Policy:
    names = _preset_names()
    if name not in names:
        raise PolicyError(
            f"there is no policy {shown(name)}{did_you_mean(name, names)}",
            where="the presets",
            remedy=f"choose one of {', '.join(names)}, or give the path of a .yaml, .json or .toml file",
        )
    return _from_file(PRESETS / f"{name}.yaml")


def _from_file(path: Path) -> Policy:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in documents.KINDS:
        raise PolicyError(
            f"a policy file ends in {', '.join(f'.{kind}' for kind in documents.KINDS)}, got {path.name!r}",
            where=str(path),
            remedy="rename the file, or give the name of a preset: " + ", ".join(_preset_names()),
        )
    try:
        data = documents.load(path, kind)
    except documents.Unreadable as error:
        remedy = error.remedy
        if not os.path.lexists(path):
            remedy += f", or give the name of a preset: {', '.join(_preset_names())}"
        raise PolicyError(f"the policy file {error}", where=str(path), remedy=remedy) from error
    return _validated(data, where=str(path))


class _Dumper(yaml.SafeDumper):
    """Plain YAML: a list of numbers on one line, one of mappings below its key, flat mappings a line each."""

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        node = self.represent_sequence("tag:yaml.org,2002:seq", data)
        node.flow_style = all(isinstance(item, yaml.ScalarNode) for item in node.value)
        for item in node.value:
            if isinstance(item, yaml.MappingNode):
                item.flow_style = all(isinstance(value, yaml.ScalarNode) for _, value in item.value)
        return node

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


_Dumper.add_representer(list, _Dumper.represent_list)
_Dumper.add_implicit_resolver(*documents.EXPONENT)


# Mistakes ---------------------------------------------------------------------------------------------------


def _validated(data: object, *, where: str) -> Policy:
    if not isinstance(data, dict):
        raise PolicyError(
            f"a policy is a mapping of keys to values, got {shown(data)}",
            where=where,
            remedy=f"give the keys {', '.join(Policy.model_fields)}",
        )
    try:
        return Policy.model_validate(_renamed(data, where))
    except ValidationError as error:
        mistakes = described(error)
        place = "the place" if len(mistakes) == 1 else "each place"
        raise PolicyError(
            "\n".join(mistakes), where=where, remedy=f"correct {place} named after the @"
        ) from error


def _renamed(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The same in today's words; for one release old ones are read, with a warning."""
    if isinstance(old := data.get("restore"), str) and old in _RESTORES:
        warnings.warn(
            f"{where}: restore {old} is now {_RESTORES[old]}; the old name works for one release",
            DeprecationWarning,
            stacklevel=2,
        )
        data = {**data, "restore": _RESTORES[old]}
    then = data.get("then")
    steps = then if isinstance(then, list | tuple) else ()
    if not any(_has_old_keep(step) for step in (data, *steps)):
        return data
    warnings.warn(
        f"{where}: selector.keep is now selector.keep_per_site; the old name works for one release",
        DeprecationWarning,
        stacklevel=2,
    )
    renamed = _with_new_keep(data)
    return renamed if not steps else {**renamed, "then": [_with_new_keep(step) for step in steps]}


#: Ways to restore tokens by their old names.
_RESTORES = {"nearest": "copy", "unmerge": "copy"}


def _has_old_keep(step: object) -> bool:
    selector = step.get("selector") if isinstance(step, dict) else None
    return isinstance(selector, dict) and "keep" in selector and "keep_per_site" not in selector


def _with_new_keep(step: Any) -> Any:
    if not _has_old_keep(step):
        return step
    words = {"keep_per_site" if name == "keep" else name: value for name, value in step["selector"].items()}
    return {**step, "selector": words}
