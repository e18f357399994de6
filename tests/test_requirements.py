"""The versions in constraints.txt, which were tested, are among those that the requirements allow."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def requirements_in(name: str) -> list[Requirement]:
    """The packages of a file, without its comments and the other files that it takes in."""
    lines = [re.sub(r"\s*#.*", "", line) for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


PINS = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in requirements_in("constraints.txt")}
NEEDED = [*requirements_in("requirements.txt"), *requirements_in("requirements-dev.txt")]


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda requirement: requirement.name)
def test_a_lower_bound_admits_the_tested_version(requirement):
    assert [part.operator for part in requirement.specifier] == [">="]
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])
