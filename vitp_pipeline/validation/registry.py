"""Registries of named members: those that come with vitp, and those of plugins.

A registry names the modules that add vitp's own members. They and the plugins are imported at first access: so
`--help` stays fast, and a lower layer can offer choices that a higher one implements. A plugin is an installed package
with an entry point in the group `vitp.plugins`; its value is a module, whose import adds members:

    @FORMULAS.register("arithmetic")
    def arithmetic(generator, classifier, alpha): ...

Only installed packages are trusted as code; neither data nor run directories can name any.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module, metadata
from pathlib import Path
from threading import RLock
from typing import Generic, TypeVar

from vitp_pipeline.errors import UsageError
from vitp_pipeline.validation.tables import did_you_mean

Member = TypeVar("Member")

PLUGINS = "vitp.plugins"
"""Group of entry points that name modules to be imported."""

_LOOKING = RLock()


class Registry(Generic[Member]):
    """Members of a family by name, sorted by name.

    Args:
        what: noun for a member in messages, as in "label kind".
        modules: names of the modules whose import adds vitp's own members.
    """

    def __init__(self, what: str, *modules: str) -> None:
        self.what, self.modules = what, modules
        self._members: dict[str, Member] = {}
        self._looked = False

    def add(self, name: str, member: Member) -> Member:
        """Add a member and return it. Raises UsageError if the name is taken."""
        if name in self._members:
            raise UsageError(f"two plugins add the {self.what} {name!r}", "Uninstall one plugin, or rename its own")
        self._members[name] = member
        return member

    def register(self, name: str) -> Callable[[Member], Member]:
        """Make a decorator that adds a function or class under this name."""
        return partial(self.add, name)

    def __getitem__(self, name: str) -> Member:
        """Return the member of this name. Raises UsageError if there is none."""
        if (member := self._found().get(name)) is None:
            raise UsageError(f"no {self.what} {name!r}", did_you_mean(name, self))
        return member

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._found()))  # whatever was imported first

    def __len__(self) -> int:
        return len(self._found())

    def __contains__(self, name: object) -> bool:
        return name in self._found()

    def __str__(self) -> str:
        """Join the names for a message: "npz, coco, mmdet"."""
        return ", ".join(self)

    def _found(self) -> dict[str, Member]:
        """Return the members after all are added. Modules imported meanwhile may already look."""
        with _LOOKING:
            if not self._looked:
                self._looked = True
                try:
                    for module in self.modules:
                        import_module(module)
                    load_plugins()
                except BaseException:
                    self._looked = False
                    raise
        return self._members


@cache
def load_plugins() -> None:
    """Import, once, the modules that the entry points of installed packages name.

    Packages in the current folder are ignored, though `python -m` would find them: they may be untrusted data.

    Raises:
        UsageError: one cannot be imported.
    """
    here = Path.cwd()
    places = [place for place in sys.path if place and Path(place).resolve() != here]
    for found in metadata.distributions(path=places):
        for entry in found.entry_points.select(group=PLUGINS):
            try:
                entry.load()
            except Exception as error:  # a package may raise what it likes
                raise UsageError(
                    f"the plugin {entry.name!r} of {found.name} cannot be imported ({type(error).__name__}: {error})",
                    f"Repair it, or pip uninstall {found.name}",
                ) from error
