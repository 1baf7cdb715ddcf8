"""Declare a key: its help, its unit, and whether it is part of a run's identity."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

if TYPE_CHECKING:  # loading pydantic takes as long as all of config: it waits for the first value to check
    from pydantic import ConfigDict, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

STRICT: ConfigDict = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""Of every table: types as TOML has them (an integer stands for a float, a boolean for no number), finite numbers."""


DRAFT = "http://json-schema.org/draft-07/schema#"
"""Version of JSON Schema that editors of TOML read."""


@dataclass(frozen=True)
class Key:
    """Documentation of a field, as in `Annotated[int, within(1, 64), Key("Images per forward.", "images")] = 4`.

    Attributes:
        help: one sentence on its effect.
        unit: of its numbers: px, images, fraction … ; empty for text and switches.
        enters: how it enters a run's identity: by its "value", by the "content" of the file it names, by the "keys"
            that it stands for, or "not": it cannot change results.
    """

    help: str
    unit: str = ""
    enters: Literal["value", "content", "keys", "not"] = "value"

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(core), "description": self.help} | ({"x-unit": self.unit} if self.unit else {})


@cache
def types_of(kind: Any) -> dict[str, Any]:
    """Return the annotated type of every field of a table, in the order of declaration."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def keys_of(kind: Any) -> dict[str, Key]:
    """Return the key of every field of a table, in the order of declaration."""
    return _keys_of(kind)


@cache
def _keys_of(kind: Any) -> dict[str, Key]:
    return {name: next(m for m in hint.__metadata__ if isinstance(m, Key)) for name, hint in types_of(kind).items()}


def schema_of(annotation: Any) -> dict[str, Any]:
    """Make the JSON Schema (draft 7, without references) of a table or of a value's type."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    class Draft7(GenerateJsonSchema):
        """Generate draft 7: pydantic writes draft 2020-12, where a pair has `prefixItems`; here both share a type."""

        def tuple_schema(self, schema: Any) -> JsonSchemaValue:
            found = super().tuple_schema(schema)
            if parts := found.pop("prefixItems", None):
                found["items"] = parts[0]
            return found

        def get_title_from_name(self, name: str) -> str:
            return name

    return TypeAdapter(annotation).json_schema(schema_generator=Draft7)
