"""The manifest of an artefact: `prunec.json`, checked key by key before anything is built from it.

Keys that are not known are passed over: a later prunec may add facts, and a reader of this one needs none of
them. What a later prunec changes so that this one must not read it, it says by another `format`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from prunec import documents
from prunec.artefact.checksums import DIGEST, digest
from prunec.artefact.spec import Spec
from prunec.errors import SourceError, shown
from prunec.policy.language import MOST, Word, mistakes
from prunec.policy.lowering import Attention
from prunec.policy.modes import ModeName
from prunec.policy.policy import Policy
from prunec.targets.precision import Precision

FORMAT = 1
MANIFEST = "prunec.json"
WEIGHTS = "model.safetensors"
KEYS = ("source", "weights", "target", "policy", "plan", "certificate")  # what a manifest holds at least

Count = Annotated[int, Field(ge=0, le=MOST)]
Length = Annotated[int, Field(ge=1, le=MOST)]
#: The name of a file that lies in the artefact's folder itself.
FileName = Annotated[str, Field(max_length=255, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class _Record(BaseModel):
    """Strict: a number is no text. Lists, as JSON has them, become tuples."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class SiteRecord(_Record):
    """A site, as `program.Site` says it."""

    block: Count
    where: Literal["before_block", "after_attention"]
    tokens: Count
    keep: Count
    leaves: Count
    ragged: bool = False
    step: Count = 0
    known: bool = True


class LoweringRecord(_Record):
    """A mode and its options, as `lowering.choose` takes them."""

    mode: ModeName | None = None
    buckets: Annotated[tuple[Length, ...], Field(strict=False, max_length=1024)] = ()
    max_tokens: Annotated[
        int | None, Field(ge=1, le=2**31, validation_alias=AliasChoices("max_tokens", "bound"))
    ] = None  # older artefacts say bound
    attention: Attention | None = None


class PlanRecord(_Record):
    """Sites and counts, as the program had them; loading makes them again and needs the lowering only."""

    policy: dict[str, Any] = Field(default_factory=dict)
    sites: Annotated[tuple[SiteRecord, ...], Field(strict=False)] = ()
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    rejoin: Count | None = None
    lowering: LoweringRecord = LoweringRecord()


class CertificateRecord(_Record):
    """What was compared, and how far apart it lay."""

    identity: float | None = Field(default=None, ge=0)
    permutation: float | None = Field(default=None, ge=0)
    tolerance: float | None = Field(default=None, ge=0)
    permutation_tolerance: float | None = Field(default=None, ge=0)
    padding: float | None = Field(default=None, ge=0)
    seconds: float | None = Field(default=None, ge=0)
    batch: Count | None = None


class FileRecord(_Record):
    """What a file was when it was written."""

    size: Annotated[int, Field(ge=0, le=2**63)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PortableRecord(_Record):
    """The file of the model that needs nothing else, or why there is none."""

    file: FileName | None = None
    reason: Annotated[str, Field(max_length=2**16)] = ""


class Manifest(_Record):
    """All that a manifest holds."""

    format: Literal[1]
    source: Word
    weights: Word
    target: Word
    precision: Precision = "fp32"  # in which the target runs
    policy: dict[str, Any]
    plan: PlanRecord
    certificate: CertificateRecord
    submodule: Word = ""
    arch: Word = ""
    example: Word = ""
    versions: dict[Word, Word] = Field(default_factory=dict)
    files: Annotated[tuple[FileName, ...], Field(strict=False)] = ()  # beside the manifest itself
    checksums: dict[FileName, FileRecord] | None = None  # of these files; older artefacts have none
    spec: Spec | None = None  # what the model takes and gives; older artefacts have none
    portable: PortableRecord = PortableRecord(reason="it was made by an older prunec")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a file.

        Raises:
            SourceError: it cannot be read, is of another format, or a key has a value that it cannot have.
            PolicyError: the policy in it is none.
        """
        folder = path.parent
        try:
            plain = documents.load(path, "json")
        except documents.Unreadable as error:
            raise unreadable(folder, f"{MANIFEST} {error}") from error
        if not isinstance(plain, dict) or "format" not in plain:
            raise unreadable(folder, f"{MANIFEST} is not the manifest of one")
        if plain["format"] is True or plain["format"] != FORMAT:
            raise SourceError(
                f"{folder} has format {shown(plain['format'])}, this prunec reads {FORMAT}",
                remedy="write it again with this version",
            )
        absent = [key for key in KEYS if key not in plain]
        if absent:
            raise SourceError(f"{path} lacks {', '.join(absent)}", remedy="write it again with this version")
        try:
            manifest = cls.model_validate(plain)
        except ValidationError as error:
            raise unreadable(folder, f"{MANIFEST}: {mistakes(error)}") from error
        if DIGEST in plain and plain[DIGEST] != digest(plain):
            raise unreadable(folder, f"{MANIFEST} is not what was written: its checksum differs")
        Policy.load(manifest.policy, where=f"{path}, policy")
        return manifest


def unreadable(folder: Path, why: str) -> SourceError:
    """The error of a folder that is no artefact, or not one any more."""
    return SourceError(
        f"{folder} is no readable prunec artefact: {why}",
        remedy="give a folder that `prunec optimize -o` wrote",
    )
