"""Read YAML safely (the only reader in vitp): plain data, no tags, bounded size.

PyYAML's loaders build what tags ask for (`!!python/object/apply:os.system`); its safe one still follows aliases of
aliases, nine lines of which make a billion nodes, and digits and depth without end.
"""

from __future__ import annotations

from typing import Any

import yaml

LONGEST, DEEPEST, MOST = 1 << 22, 60, 200_000
"""Characters of a text, containers in each other, and nodes, aliases written out."""

_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_LONGEST_NUMBER = 200
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """Read one document: mappings, lists, text, numbers, booleans and null.

    Raises:
        ValueError: not YAML, with a tag, or too large when its aliases are written out.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters, more than {LONGEST}")
    try:
        _check_events(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, ())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def _check_events(text: str) -> None:
    """Depth and tags, before anything is built."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or count > MOST:
            raise ValueError("it is nested too deeply" if depth > DEEPEST else f"it has more than {MOST} nodes")
        if (tag := getattr(event, "tag", None)) is not None and tag not in _PLAIN | {"!"}:
            raise ValueError(f"line {event.start_mark.line + 1}: the tag {str(tag)[:100]} is not data")


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Nodes at and below one, each alias counted as what it stands for. Raises ValueError of too many, or a circle."""
    if id(node) in above:
        raise ValueError(f"line {node.start_mark.line + 1}: an alias stands inside of what it stands for")
    if id(node) in known:
        return known[id(node)]
    if node.tag not in _PLAIN:
        raise ValueError(f"line {node.start_mark.line + 1}: {node.tag.rpartition(':')[2]} is not plain data")
    number = node.tag.endswith((":int", ":float"))
    if isinstance(node, yaml.ScalarNode):
        if number and len(node.value) > _LONGEST_NUMBER:
            raise ValueError(f"line {node.start_mark.line + 1}: a number of {len(node.value)} digits")
        return 1
    inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    total = 1 + sum(_count(part, known, (*above, id(node))) for part in inner)
    if total > MOST:
        raise ValueError(f"it has more than {MOST} nodes when its aliases are written out")
    known[id(node)] = total
    return total
