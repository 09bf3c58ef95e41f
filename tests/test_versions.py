"""What pyproject.toml says of versions is what the files of constraints install, which is what is tested."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TOOLS = {"ruff", "mypy", "import-linter"}  # they read the code, and run with the versions of constraints.txt only
NEWEST = {"torch"}  # its oldest version is not installed


def stated() -> dict[str, Requirement]:
    """The requirements of users and of developers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["dev"]
    return {r.name: r for r in map(Requirement, lines)}


def pinned(name: str, python: str = "3.11") -> dict[str, str]:
    """The exact versions in a file of constraints."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    pins = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"python_version": python})]
    assert len({r.name for r in pins}) == len(pins)
    return {r.name: str(r.specifier).removeprefix("==") for r in pins}


@pytest.mark.parametrize("name", sorted(stated()))
def test_the_tested_version_is_among_those_stated(name):
    assert stated()[name].specifier.contains(pinned("constraints.txt")[name])


@pytest.mark.parametrize("name", sorted(stated().keys() - TOOLS - NEWEST))
def test_the_oldest_version_stated_is_the_one_installed_for_its_test(name):
    (bound,) = stated()[name].specifier
    assert bound.operator == ">="
    oldest = pinned("constraints-oldest.txt")[name]
    assert oldest == bound.version + ".0" * (oldest.count(".") - bound.version.count("."))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_python_has_all_oldest_versions(python):
    assert pinned("constraints-oldest.txt", python).keys() == stated().keys() - TOOLS
    assert pinned("constraints-oldest.txt", python)["torch"] == pinned("constraints.txt")["torch"]
