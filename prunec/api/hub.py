"""Artefacts on the Hugging Face hub: written there, and loaded from there. Needs huggingface_hub."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from prunec.api.loading import load
from prunec.artefact import artefact
from prunec.errors import PruneError, UsageError, first_sentence


def from_pretrained(
    name: str | Path,
    *,
    target: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """The module of an artefact in a folder, or on the hub as `ORG/NAME`; see `load`.

    Only what `load` needs is downloaded, and nothing that is downloaded is run.

    Args:
        name: a folder, or ORG/NAME.
        target: the backend; the one it was made for when left out.
        revision: a branch, tag or commit.
        token: for what is not public; the one that you are logged in with when left out.
        cache_dir: where downloads are kept.
        local_files_only: use what was downloaded before, and ask nobody.

    Raises:
        SourceError: it is no artefact, or is damaged.
        PruneError: it cannot be downloaded.
    """
    if Path(name).is_dir():
        return load(name, target=target)
    try:
        folder = _hub().snapshot_download(
            str(name),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=list(artefact.NEEDED),
        )
    except PruneError:
        raise
    except Exception as error:  # errors of the hub, of the network and of the disk have no common base
        raise PruneError(
            f"{name} cannot be had from the hub: {first_sentence(error)}",
            remedy="check the name, the network and that you may read it, or give a folder",
        ) from error
    return load(folder, target=target)


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload a model with fewer tokens",
) -> str:
    """Put an artefact on the hub, in place of an older one there; the address of the commit."""
    api = _hub().HfApi(token=token)
    names = sorted(path.name for path in folder.iterdir())
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=str(folder),
            commit_message=commit_message,
            delete_patterns=[name for name in artefact.KNOWN if name not in names],
        )
    except Exception as error:
        raise PruneError(
            f"{folder} could not be uploaded to {repo_id}: {first_sentence(error)}",
            remedy="log in with `hf auth login`, and check that you may write there",
        ) from error
    return str(commit)


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise UsageError(
            "huggingface_hub is not installed", remedy="pip install huggingface_hub, or give a folder"
        ) from error
