"""`vitp generators`: list the generator families that can run in this installation, and what the others lack."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from vitp_pipeline.generators.registry import FAMILIES, Family
from vitp_pipeline.runtime.output import show_json


@dataclass(frozen=True)
class Availability:
    """Availability of a family of generators.

    Attributes:
        packages: version by module; "" if unknown, None if the module is not installed.
    """

    family: str
    networks: str
    config: str
    ready: bool
    packages: dict[str, str | None]
    install: str


def availability() -> list[Availability]:
    """Check every family, without importing any."""
    return [_of(family) for family in reversed(FAMILIES)]


def _of(family: Family) -> Availability:
    packages = {module: _version(module, family.needs[module]) for module in family.needs}
    lacking = [name for name, number in packages.items() if number is None]
    line = family.install(lacking) if lacking else ""
    return Availability(family.name, family.networks, family.named, not lacking, packages, line)


def _version(module: str, distributions: tuple[str, ...]) -> str | None:
    if find_spec(module) is None:
        return None
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return ""


def print_availability(found: list[Availability], as_json: bool) -> None:
    """Print a table, or JSON, on standard output."""
    if as_json:
        show_json([asdict(entry) for entry in found], indent=2)
        return
    from vitp_pipeline.runtime.tables import Table

    table = Table.open()
    for column in ("", "networks", "config =", "here"):
        table.column(column, overflow="fold")
    for entry in found:
        here = ", ".join(f"{name} {number}" for name, number in entry.packages.items() if number is not None)
        lacking = ", ".join(name for name, number in entry.packages.items() if number is None)
        state = f"yes{f': {here}' if here else ''}" if entry.ready else f"no, lacks {lacking}: {entry.install}"
        table.row(entry.family, entry.networks, entry.config, state)
    table.show()
