"""The backbone that a mistaken name means: a misspelled one of timm, or the name of another library."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache

import timm

from vitp_pipeline.classifier.backbones.kinds import accepted_names

SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}
"""Of torch.hub's short names, as in `dinov2_vits14`."""


def nearest_name(name: str) -> str:
    """Return the accepted name, with its tag where `name` has one, that is most like `name`; "" if none is.

    Names of the Hub (`facebook/dinov2-small`) and of torch.hub (`dinov2_vits14`) are compared by their words.
    """
    own = name[:100].rpartition("/")[2].rpartition(":")[2].lower()
    own, _, tag = own.partition(".")
    own = re.sub(r"vit_?([tsblhg])_?(\d{1,2})(?!\d)", lambda m: f"vit_{SIZES[m[1]]}_patch{m[2]}", own).replace("-", "_")
    names = _names()
    near = own if own in names else next(iter(difflib.get_close_matches(own, names, 1, 0.85)), "") or _by_words(own)
    near = near or next(iter(difflib.get_close_matches(own, names, 1)), "")
    return nearest_tag(near, tag) or near


def nearest_tag(name: str, tag: str) -> str:
    """Return `name` with the tag of its weights that is most like `tag`; "" if none is."""
    tags = [tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{name}.*")] if name and tag else []
    near = difflib.get_close_matches(tag, tags, 1)
    return f"{name}.{near[0]}" if near else ""


def _by_words(name: str) -> str:
    """Return the shortest name that has all words of another one, as words or inside of them."""
    known_words = sorted({word for known in _names() for word in known.split("_")})
    words = [next(iter(difflib.get_close_matches(word, known_words, 1, 0.8)), word) for word in name.split("_") if word]
    holding = [known for known in _names() if words and all(word in known.split("_") for word in words)]
    holding = holding or [known for known in _names() if words and all(word in known for word in words)]
    return min(holding, key=lambda known: (len(known), known), default="")


@lru_cache(1)
def _names() -> tuple[str, ...]:
    return tuple(accepted_names())
