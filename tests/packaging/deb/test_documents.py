from __future__ import annotations

import re
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from appliance.config import options as config

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def documents() -> ModuleType:
    """What writes the package's documents."""
    spec = util.spec_from_file_location("documents", ROOT / "packaging/deb/documents.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_default_file_sets_nothing(documents: ModuleType, tmp_path: Path) -> None:
    """Every option is in it, commented out."""
    installed = tmp_path / "installed.toml"
    installed.write_text(documents.default_file())
    assert config.load(str(installed), environment={}) == config.Config()
    names = re.findall(r"^#(\w+) = ", documents.default_file(), re.MULTILINE)
    assert names == [option.key.rpartition(".")[2] for option in config.options()]


def test_every_option_of_the_default_file_is_valid_as_it_stands(documents: ModuleType, tmp_path: Path) -> None:
    """Whoever takes away the number signs gets an appliance that starts; only a token's file must exist."""
    whole = tmp_path / "whole.toml"
    text = re.sub(r"^#token_file = .*\n", "", documents.default_file(), flags=re.MULTILINE)
    whole.write_text(re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE))
    assert config.load(str(whole), environment={}) != config.Config()
