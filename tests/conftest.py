"""Shapes in annotations are checked in the tests: the hook must be in place before gradlogp is imported."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import config, install_import_hook

install_import_hook("gradlogp", "beartype.beartype")

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent / "contracts"))


@pytest.fixture
def g() -> torch.Generator:
    """A seeded source of draws."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """The library as it is outside the tests, with no checks but its own: what wrong types of input meet."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
