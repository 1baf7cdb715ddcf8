"""Labels of a run's class scores and evaluations in a few words: by their identities, not by their hashes.

default, max point, α = 0.7
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitp_pipeline.artifacts.run import StageRun, is_begun, open_run
from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings
from vitp_pipeline.errors import UserError
from vitp_pipeline.storage.digests import recorded_digest
from vitp_pipeline.storage.run_store import RunStore
from vitp_pipeline.storage.sealed import read_sealed

ALWAYS = ("classifier", "points", "alpha")
MAIN = ("run", *ALWAYS, "formula")
LAST = ("stream", "alphas", "folder")
STAGES = ("class_scores", "evaluation")
"""Facts of MAIN are shown wherever they differ. The others are shown only to distinguish entries that are otherwise
alike, those of LAST after all settings.
"""

Facts = dict[str, str]
"""Text by key, in the order of display."""


def facts_of(store: RunStore, stages: Sequence[StageRun]) -> list[Facts]:
    """Describe the folders class_scores/ and evaluation/ of a run; of the former all but α and formula.

    An identity with types that vitp does not write gives an empty entry.
    """
    held = any(stage.folder.parent.name == "class_scores" for stage in stages)
    classifiers = _names(store, _files_of(stages) if held else files_that_scored(store))
    known = {stage.folder.name: stage.identity for stage in stages if stage.folder.parent.name == "class_scores"}
    found: list[Facts] = []
    for stage in stages:
        try:
            found.append(_facts(store, stage, classifiers, known))
        except (AttributeError, KeyError, TypeError, ValueError):
            found.append({})
    return found


def _facts(store: RunStore, stage: StageRun, classifiers: dict[str, str], known: dict[str, dict[str, Any]]) -> Facts:
    identity, kind = stage.identity, stage.folder.parent.name
    scores = identity if kind == "class_scores" else _scores(store, identity, known)
    settings = scores.get("settings", {})
    facts = {
        "classifier": classifiers.get(digest := scores.get("classifier", ""), digest[:8]),
        "points": f"{identity.get('points', settings.get('points', ClassifySettings.points))} point",
    }
    if identity.get("alphas") == [0.0]:  # no classifier has scored the points
        facts = {}
    if kind == "evaluation":
        own = identity.get("settings", {})
        facts |= {"alpha": alpha_of(identity), "formula": own.get("formula", EvaluateSettings.formula)}
        settings = settings | own
    others = {k: v for k, v in settings.items() if k not in ("points", *facts)}
    facts |= {k: f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in others.items()}
    if "stream" in identity:
        facts["stream"] = "streamed"
    if len(identity.get("alphas", ())) > 3:  # more than 0, 1 and the headline's
        facts["alphas"] = f"{len(identity['alphas'])} α measured"
    return {key: str(text) for key, text in facts.items()}


def labels(facts: Sequence[Facts], always: Collection[str] = ()) -> list[str]:
    """Return for each the text that distinguishes it from the others.

    Args:
        always: keys that are shown even where all are equal.
    Returns:
        "" for one that nothing distinguishes.
    """
    every = [key for entry in facts for key in entry]
    keys = [*MAIN, *dict.fromkeys(key for key in every if key not in (*MAIN, *LAST)), *LAST]

    def alike(chosen: Sequence[str]) -> int:
        return len({tuple(entry.get(key) for key in chosen) for entry in facts})

    chosen = [key for key in keys if key in always or (key in MAIN and alike([key]) > 1)]
    for key in keys:
        if key not in chosen and alike([*chosen, key]) > alike(chosen):
            chosen.append(key)
    return [", ".join(entry[key] for key in chosen if entry.get(key)) for entry in facts]


def alpha_of(identity: dict[str, Any]) -> str:
    """Weight of the classifier in the headline of an evaluation."""
    alone = {1.0: "classifier alone", 0.0: "generator alone"}
    if len(alphas := identity.get("alphas", ())) == 1 and alphas[0] in alone:  # others hold both
        return alone[alphas[0]]
    return f"α = {identity.get('settings', {}).get('alpha', EvaluateSettings.alpha):g}"


def classifier_folder(store: RunStore, digest: str) -> Path | None:
    """The folder in the run of the classifier whose weights have this digest; None when it is elsewhere."""
    return _classifiers(store).get(digest)


def classifier_named(store: RunStore, digest: str) -> str:
    """The name of the classifier in its run, else that of its file, or the beginning of its digest."""
    return _names(store, files_that_scored(store)).get(digest, digest[:8])


def files_that_scored(store: RunStore) -> dict[str, str]:
    """List the classifiers from outside the run that have scored its proposals: their files, as the run remembers
    them, by digest.
    """
    stages = []
    for folder in (store.folder / kind / name for kind in STAGES for name in store.folders(store.folder / kind)):
        with suppress(UserError):  # `vitp verify` has the say on it
            stages += [open_run(store, folder)] if is_begun(store, folder) else []
    return _files_of(stages)


def _files_of(stages: Sequence[StageRun]) -> dict[str, str]:
    told = [(stage.identity.get("stream") or stage.identity, stage.provenance.get("classifier")) for stage in stages]
    return {str(said.get("classifier", "")): str(file) for said, file in told if file}


def _names(store: RunStore, files: Mapping[str, str]) -> dict[str, str]:
    """Names of classifiers by digest: folders of the run, else files; equal names with the beginning of the digest."""
    inside = {digest: folder.name for digest, folder in _classifiers(store).items()}
    files = {digest: _short(path) for digest, path in files.items() if digest not in inside}
    taken = Counter([*inside.values(), *files.values()])
    return inside | {d: name if taken[name] == 1 else f"{name} ({d[:8]})" for d, name in files.items()}


def _short(path: str) -> str:
    """Shorten the path of a classifier: without its folders, or where it is the model of a training, its name."""
    file = Path(path)
    return file.parent.name if file.name == "model.safetensors" and file.parent.name else file.name


def _scores(store: RunStore, identity: dict[str, Any], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The identity of the class scores of an evaluation; nothing where they are gone."""
    if "stream" in identity:
        return {**identity["stream"], "settings": identity["stream"].get("classify", {})}
    name = identity.get("class_scores", "")[:12]
    if name not in known:
        folder = store.folder / "class_scores" / name
        begun = bool(name) and is_begun(store, folder)
        known[name] = read_sealed(store.fetch(folder / "run.json")).get("identity", {}) if begun else {}
    return known[name]


def _classifiers(store: RunStore) -> dict[str, Path]:
    """The folders of a run's trained classifiers by the digest of their weights."""
    found = {}
    for name in reversed(store.folders(store.folder / "classifier")):
        folder = store.folder / "classifier" / name
        if is_begun(store, folder):
            store.fetch(folder / "model.json")
            found[recorded_digest(folder / "model.safetensors")] = folder
    return {digest: folder for digest, folder in found.items() if digest is not None}
