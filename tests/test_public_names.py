"""What `import prunec` offers: names that are looked up when they are used, and are never a module's."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import prunec

NAMES = [name for name in prunec.__all__ if name != "__version__"]


def names_for_type_checkers() -> dict[str, str]:
    """Name -> module, of the imports under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(prunec.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_all_names_are_in_the_table_and_seen_by_type_checkers() -> None:
    assert sorted(NAMES) == sorted(prunec._MODULES)
    assert names_for_type_checkers() == prunec._MODULES


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_its_module_defines(name: str) -> None:
    assert getattr(prunec, name) is getattr(importlib.import_module(prunec._MODULES[name]), name)


def test_no_exported_name_is_a_modules() -> None:
    modules = {module.name for module in pkgutil.iter_modules(prunec.__path__)}
    assert "structure" in modules
    assert modules & set(prunec.__all__) == set()


def test_every_name_is_listed_before_it_is_used() -> None:
    assert set(prunec.__all__) <= set(dir(prunec))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'prunec' has no attribute 'transfrom'$"):
        prunec.transfrom  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'transfrom'"):
        exec("from prunec import transfrom")
