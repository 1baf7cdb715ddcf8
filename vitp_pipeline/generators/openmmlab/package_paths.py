"""Let mmengine 0.10 find installed packages without `pkg_resources`, which setuptools 82 removed.

mmengine asks `pkg_resources` where the package of `_base_ = "mmseg::…"` or of `from mmseg.configs… import …` lies, at
that moment, in two functions. Its main branch replaced both by `importlib` in October 2025 (open-mmlab/mmengine, pull
request 1676), which no release has yet.
"""

from __future__ import annotations

from importlib.util import find_spec


def installed_path(package: str) -> str:
    """Return the folder of an installed package.

    Args:
        package: its distribution or module, as mmengine names it: "mmsegmentation" and "mmseg" are the same.
    Raises:
        ModuleNotFoundError: not installed, or a folder without `__init__.py`.
    """
    module = _module(package)
    spec = find_spec(module)
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed", name=module)
    return next(iter(spec.submodule_search_locations))


def is_installed(package: str) -> bool:
    """Tell if `installed_path` would find a package."""
    try:
        return bool(installed_path(package))
    except ModuleNotFoundError:
        return False


def use_import_paths() -> None:
    """Make mmengine's config reader use these two functions. Repeated calls are harmless."""
    from mmengine.config import config

    config.is_installed = is_installed
    config.get_installed_path = installed_path


def _module(package: str) -> str:
    from mmengine.config.utils import MODULE2PACKAGE

    return next((module for module, named in MODULE2PACKAGE.items() if named == package), package)
