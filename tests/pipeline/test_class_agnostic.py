"""Masks without class scores: as an ordinary run at α = 1, and nothing else, in every command."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pipeline.conftest import RECIPE, Project
from vitp_pipeline.artifacts.proposals import open_proposals
from vitp_pipeline.cli import main as cli
from vitp_pipeline.postprocess.upsample import iter_mask_probabilities

GENERATOR = '''
"""The demo's generator with its class scores thrown away."""
import torch
import vitp_pipeline.demo
from pathlib import Path
from vitp_pipeline.generators.base import Output, objectness_logits
from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator

class Agnostic:
    class_agnostic = True
    classes = None

    def __init__(self, checkpoint, device, seed):
        config = Path(vitp_pipeline.demo.__file__).with_name("generator_config.py")
        self.own = OpenMMLabGenerator(config, checkpoint, device, seed)
        self.protocol, self.describe = self.own.protocol, "the demo's, without class scores"

    def resize(self, image, scale=1.0):
        return self.own.resize(image, scale)

    def forward(self, frames):
        return [Output(o.mask_logits, objectness_logits(1 - o.class_logits.double().softmax(1)[:, -1]), o.padded)
                for o in self.own.forward(frames)]

class Undeclared(Agnostic):
    def __init__(self, **given):
        super().__init__(**given)
        self.class_agnostic = True
'''
TASKS = '--set=tasks=["semantic", "panoptic", "instance"]'
LOW = "--set=object_threshold=0.05"
REFUSED = "masks without class scores: the classifier alone names them, α = 1"
SHOWN = ("classifier", "upper_bound_point", "upper_bound_mask")


@dataclass
class Runs:
    """A run with class scores and one without, both evaluated, and their `words` of the command line."""

    ordinary: Path
    agnostic: Path
    words: dict[str, list[str]]
    results: dict[str, dict[str, Any]]


@pytest.fixture
def vitp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """(standard output, standard error) of a command that ends with `code`."""

    def vitp(*words: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["vitp", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        found = 0
        try:
            cli.main()
        except SystemExit as stop:
            found = stop.code or 0
        out, err = capsys.readouterr()
        assert found == code, err
        return out, err

    return vitp


@pytest.fixture(scope="module")
def without(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose generator gives no class scores."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "masks_only.py").write_text(GENERATOR)
    recipe = folder / "recipe.toml"
    named = f'config = "python:{folder}/masks_only.py:Agnostic"'
    recipe.write_text(RECIPE.replace('config = "{package}/demo/generator_config.py"', named))
    return recipe


@pytest.fixture(scope="module")
def runs(project: Project, finished: Path, without: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished, folder / "ordinary")
    classifier = str(finished / "classifier/default/model.safetensors")
    words, results = {}, {}
    for name, recipe in (("ordinary", project.recipe), ("agnostic", without)):
        common = [str(recipe), "--data-root", str(project.data), "--out", str(folder / name)]
        scored = [*common, "--classifier", classifier]
        words[name] = scored
        if name == "agnostic":
            run("generate-proposals", *common)
        run("classify", *scored)
        file = folder / f"{name}.json"
        run("evaluate", *scored, TASKS, LOW, "--json", file)
        results[name] = json.loads(file.read_text())
    return Runs(folder / "ordinary", folder / "agnostic", words, results)


def run(*words: object) -> None:
    before = sys.argv
    sys.argv = ["vitp", *map(str, words)]
    try:
        cli.main()
    finally:
        sys.argv = before


def shown_figures(result: dict[str, Any]) -> dict[str, Any]:
    return {task: {name: result[task][name] for name in SHOWN} for task in ("semantic", "panoptic", "instance")}


def assert_alike(found: Any, wanted: Any, tolerance: float = 1e-6) -> None:
    """The same figures, nested; those of the classifier may differ in the seventh digit, see `logits_of_objectness`."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_alike(found[key], wanted[key], tolerance)
    else:
        assert found == (wanted if wanted is None else pytest.approx(wanted, rel=tolerance, abs=tolerance))


def keys_of(value: Any) -> set[str]:
    """All keys of nested JSON objects."""
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def test_figures_are_those_of_alpha_1(runs: Runs) -> None:
    with_scores, without = runs.results["ordinary"], runs.results["agnostic"]
    assert_alike(shown_figures(without), shown_figures(with_scores))
    assert without["masks"]["mask_accuracy"] == {"classifier": with_scores["masks"]["mask_accuracy"]["classifier"]}
    assert without["masks"]["matched"] == with_scores["masks"]["matched"] > 0
    assert with_scores["semantic"]["classifier"]["mIoU"] > 0.1
    assert with_scores["instance"]["classifier"]["coco"]["AP"] > 0.1
    assert with_scores["panoptic"]["upper_bound_mask"]["all"]["PQ"] > 0.1


def test_points_and_stored_masks_are_those_of_the_ordinary_run(runs: Runs) -> None:
    for ours, theirs in zip(open_proposals(runs.agnostic), open_proposals(runs.ordinary), strict=True):
        assert np.array_equal(ours.kept, theirs.kept) and np.array_equal(ours.masks, theirs.masks)
        assert np.array_equal(ours.points["max"], theirs.points["max"])
        assert ours.dropped_mass == pytest.approx(theirs.dropped_mass, rel=1e-5, abs=1e-9)
        probs = torch.from_numpy(ours.class_logits).double().softmax(1).numpy()
        assert np.array_equal(probs[:, :-1], np.repeat(probs[:, :1], probs.shape[1] - 1, 1))
        real = torch.from_numpy(theirs.class_logits).double().softmax(1).numpy()
        assert np.allclose(probs[:, -1], real[:, -1], rtol=1e-5, atol=1e-8)


def write_npz(run: Path, folder: Path, with_classes: bool) -> Path:
    """The stored masks of a run as probabilities over the whole image, with their class logits or only objectness."""
    folder.mkdir()
    for record in open_proposals(run):
        probs = np.stack(
            [
                p.numpy()
                for p in iter_mask_probabilities(torch.from_numpy(record.masks).float(), record.view, record.protocol)
            ]
        )
        logits = record.class_logits[record.kept]
        objectness = 1 - torch.from_numpy(logits).double().softmax(1)[:, -1].numpy()
        scores = {"class_logits": logits} if with_classes else {"scores": objectness}
        np.savez(folder / f"{record.image_id}.npz", mask_probs=probs.astype(np.float32), **scores)
    return folder


@pytest.mark.slow
def test_imported_masks_without_classes_are_those_with_them_at_alpha_1(runs: Runs, tmp_path: Path) -> None:
    results, prints = [], []
    for with_classes in (True, False):
        out, masks = (
            tmp_path / f"run{with_classes}",
            write_npz(runs.ordinary, tmp_path / str(with_classes), with_classes),
        )
        words = [*runs.words["ordinary"]]
        words[words.index("--out") + 1] = str(out)
        run("import-proposals", *words[:5], "--from", "npz", "--masks", masks)
        run("classify", *words)
        run("evaluate", *words, TASKS, LOW, "--json", tmp_path / "figures.json")
        results.append(json.loads((tmp_path / "figures.json").read_text()))
        prints.append(results[-1]["provenance"]["fingerprints"])
    assert_alike(shown_figures(results[1]), shown_figures(results[0]))
    assert results[1]["class_agnostic"] is True and "class_agnostic" not in results[0]
    assert not {*prints[0].values()} & {*prints[1].values()}
    assert (
        open_proposals(tmp_path / "runFalse").class_agnostic and not open_proposals(tmp_path / "runTrue").class_agnostic
    )


@pytest.mark.slow
def test_coco_sample_without_its_class_scores(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained Mask2Former on photographs, `VITP_PARITY_IMAGES` of them (0 = all 50)."""
    monkeypatch.setenv("VITP_WEIGHTS", str(shared / "weights"))
    model = shared / "weights" / "mask2former-efficientnet_lite0-coco-sample"
    config = 'Path(vitp_pipeline.demo.__file__).with_name("generator_config.py")'
    assert config in GENERATOR
    (tmp_path / "masks_only.py").write_text(GENERATOR.replace(config, f'Path("{model}.py")'))
    settings = ["--set", f"limit={os.environ.get('VITP_PARITY_IMAGES', '3')}"]
    common = ["coco-sample", "--data-root", str(shared / "data/coco")]
    fast = ["--set", "image_size=[112,112]", "--set", "epochs=1", "--set", "precision=float32"]
    run("train-classifier", *common, "--out", tmp_path / "ordinary", *fast)
    scored = [*common, "--classifier", tmp_path / "ordinary/classifier/default/model.safetensors"]
    results = []
    for name, changes in (("ordinary", []), ("agnostic", [f"--set=config=python:{tmp_path}/masks_only.py:Agnostic"])):
        run("generate-proposals", *common, "--out", tmp_path / name, *settings, *changes)
        run("classify", *scored, "--out", tmp_path / name)
        file = tmp_path / f"{name}.json"
        words = [*scored, "--out", tmp_path / name, TASKS, "--set=object_threshold=0.3", "--json", file]
        run("evaluate", *words, "--alpha", "1")
        results.append(json.loads(file.read_text()))
    ordinary, agnostic = results
    # objectness passes through float32 logarithms: of 50 photographs a few pixels at ties change their class
    assert_alike(shown_figures(agnostic), shown_figures(ordinary), 1e-5)
    assert ordinary["semantic"]["upper_bound_mask"]["mIoU"] > 0.1
    for name, figures in shown_figures(agnostic)["semantic"].items():
        print(f"{name}: {100 * figures['mIoU']:.4f} and {100 * ordinary['semantic'][name]['mIoU']:.4f} mIoU")


def test_streamed_figures_are_those_of_the_stages(runs: Runs, without: Path, project: Project, tmp_path: Path) -> None:
    file, words = tmp_path / "streamed.json", [*runs.words["agnostic"]]
    words[words.index("--out") + 1] = str(tmp_path / "run")
    run("evaluate", *words, "--stream", TASKS, LOW, "--json", file)
    streamed = json.loads(file.read_text())
    assert_alike(shown_figures(streamed), shown_figures(runs.results["agnostic"]), 0)
    assert streamed["provenance"]["evaluation"]["stream"]["class_agnostic"] is True


def test_identities(runs: Runs) -> None:
    ours, theirs = (runs.results[name]["provenance"]["fingerprints"] for name in ("agnostic", "ordinary"))
    assert not {*ours.values()} & {*theirs.values()}
    identity = json.loads((runs.agnostic / "proposals/run.json").read_text())["identity"]
    assert identity["class_agnostic"] is True
    assert "class_agnostic" not in json.loads((runs.ordinary / "proposals/run.json").read_text())["identity"]
    evaluated = runs.results["agnostic"]["provenance"]["evaluation"]
    assert evaluated["alphas"] == [1.0] and evaluated["settings"]["alpha"] == 1.0


def test_the_json_has_no_generator(runs: Runs) -> None:
    result = {key: value for key, value in runs.results["agnostic"].items() if key != "provenance"}
    assert result["alpha"] == 1 and result["class_agnostic"] is True
    assert not keys_of(result) & {"generator", "fused", "sweep", "gain_mIoU"}
    low, high = result["semantic"]["bootstrap"]["classifier_mIoU"]
    assert low <= result["semantic"]["classifier"]["mIoU"] <= high


def test_the_terminal_has_no_generator(runs: Runs, vitp) -> None:
    out, _ = vitp("evaluate", *runs.words["agnostic"], TASKS, LOW, "--by-class")
    assert "classifier (α = 1)" in out and "(mask labels)" in out and "mIoU of the classifier, 95 %" in out
    assert "masks without class scores" in out and not re.search("generator|fused|gain|sweep", out)
    out, _ = vitp("status", runs.agnostic)
    assert "classifier alone" in out and "α = 0.4" not in out


class Texts(HTMLParser):
    """What a page shows by section: its text outside of scripts and styles, and the data of its charts."""

    def __init__(self) -> None:
        super().__init__()
        self.section, self.silent, self.data = "", "", ""
        self.texts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.section = given.get("id", "") if tag == "section" else self.section
        self.silent = "data" if given.get("id") == "data" else tag if tag in ("script", "style") else ""
        shown = " ".join(str(given[name]) for name in ("aria-label", "data-chart") if name in given)
        self.texts[self.section] = f"{self.texts.get(self.section, '')} {shown}"

    def handle_endtag(self, tag: str) -> None:
        self.silent = ""

    def handle_data(self, text: str) -> None:
        if self.silent == "data":
            self.data += text
        elif not self.silent:
            self.texts[self.section] = f"{self.texts.get(self.section, '')} {text}"


def read_page(path: Path) -> Texts:
    page = Texts()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.mark.parametrize("with_data", [False, True])
def test_the_report_has_no_generator(
    runs: Runs, project: Project, without: Path, vitp, tmp_path: Path, with_data
) -> None:
    data = ("--data-root", project.data, "--recipe", without) if with_data else ()
    vitp("report", runs.agnostic, "--out", tmp_path / "page.html", *data)
    page = read_page(tmp_path / "page.html")
    shown = {name: text for name, text in page.texts.items() if name != "provenance"}
    assert {"summary", "classes", "confusion", "masks", "gallery"} <= shown.keys() and "alpha" not in shown
    for text in shown.values():
        assert not re.search(r"generator|\bfus(ed|ion)|improved|harmed|α = 0", text), text
    assert "classifier alone (α = 1)" in shown["figures"] and "(mask labels)" in shown["figures"]
    data = json.loads(page.data)
    assert not keys_of(data) & {"generator", "fused"} and not re.search(
        "generator|fused", json.dumps(data["charts"]).replace("--generator", "")
    )
    assert data["compared"] == data["sources"] == ["classifier"]
    assert {card["kind"] for card in data["gallery"]} <= {"worst", "uncertain"} and len(data["gallery"]) == 9
    assert f"{100 * runs.results['agnostic']['semantic']['classifier']['mIoU']:.2f}" in shown["summary"]


def test_comparison_with_an_ordinary_run_is_by_the_classifier(runs: Runs, vitp, tmp_path: Path) -> None:
    page, file = tmp_path / "page.html", tmp_path / "numbers.json"
    out, _ = vitp("compare", runs.ordinary, runs.agnostic, "--out", page, "--json", file)
    numbers = json.loads(file.read_text())
    assert {row["variant"] for row in numbers["differences"]} == {"classifier"}
    for row in numbers["differences"]:  # the newest of both was measured alike
        assert abs(row["estimate"]) < 1e-6 and abs(row["low"]) < 1e-6 and abs(row["high"]) < 1e-6
    assert {row["metric"] for row in numbers["differences"]} >= {"mIoU", "PQ"}
    assert set(numbers["classified_by"].values()) == {"classifier"}
    (classes,), (images,) = numbers["classes"].values(), numbers["image_changes"].values()
    assert classes and all(abs(row["estimate"]) < 1e-6 for row in classes)
    assert len(images) == 9 and all(abs(row["change"]) < 1e-6 for row in images)
    assert "class scores of the masks the generator's → none" in out and "fused" not in out
    assert "α = 0.4 → 1" in out
    assert "IoU of the classifier's maps" in read_page(page).texts["classes"]


def test_comparison_of_two_without_class_scores(runs: Runs, vitp, tmp_path: Path) -> None:
    vitp("evaluate", *runs.words["agnostic"], "--set=object_threshold=0.5")
    folders = sorted((runs.agnostic / "evaluation").iterdir())
    page, file = tmp_path / "page.html", tmp_path / "numbers.json"
    out, _ = vitp("compare", *folders[:2], "--out", page, "--json", file)
    assert {row["variant"] for row in json.loads(file.read_text())["differences"]} == {"classifier"}
    shown = {name: text for name, text in read_page(page).texts.items() if name not in ("provenance", "settings")}
    assert not re.search("generator|fused", out + "".join(shown.values())) and "alpha" not in shown
    shutil.rmtree(
        min(folders, key=lambda f: f.stat().st_mtime)
        if len(folders) > 2
        else max(folders, key=lambda f: f.stat().st_mtime)
    )


FLAGS = {
    "flag": (["--alpha", "0.4"], ""),
    "flag-0": (["--alpha", "0"], ""),
    "set": (["--set=alpha=0.4"], ""),
    "recipe": ([], "[evaluate]\nalpha = 0.4\n"),
    "recipe-0.7": ([], "[evaluate]\nalpha = 0.7\n"),
}


@pytest.mark.parametrize("command", ["evaluate", "stream", "export-results", "predict", "submit"])
@pytest.mark.parametrize("way", [*FLAGS, "sweep"])
def test_another_alpha_is_refused_before_any_work(
    runs: Runs, without: Path, project: Project, vitp, tmp_path: Path, command: str, way: str
) -> None:
    flags, table = FLAGS.get(way, (["--alpha", "0:1:0.5"], ""))
    if way == "sweep" and command in ("export-results", "predict"):
        pytest.skip("takes one α")
    if way == "set" and command == "submit":
        pytest.skip("has no --set")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(without.read_text() + table)
    words = [str(recipe), *runs.words["agnostic"][1:]]
    commands = {
        "evaluate": ["evaluate", *words],
        "stream": ["evaluate", *words[:3], "--out", tmp_path / "streamed", *words[5:], "--stream"],
        "export-results": ["export-results", *words, "--format", "label-png"],
        "predict": [
            "predict",
            project.data / "images/val",
            "--recipe",
            recipe,
            "--out",
            tmp_path / "found",
            *words[5:],
        ],
        "submit": ["submit", *words, "--engine", "local"],
    }
    before = sorted(runs.agnostic.rglob("*"))
    _, err = vitp(*commands[command], *flags, code=2)
    (line,) = [line for line in err.splitlines() if "α" in line and "without class scores" in line]
    assert REFUSED in line
    assert sorted(runs.agnostic.rglob("*")) == before
    assert not (tmp_path / "streamed").exists() and not (tmp_path / "found").exists()


def test_alpha_1_may_be_given(runs: Runs, vitp) -> None:
    before = sorted((runs.agnostic / "evaluation").iterdir())
    vitp("evaluate", *runs.words["agnostic"], TASKS, LOW, "--alpha", "1")
    assert sorted((runs.agnostic / "evaluation").iterdir()) == before


def test_exported_files_are_those_of_the_classifier(runs: Runs, vitp, tmp_path: Path) -> None:
    exports = {}
    for name, variant in (("ordinary", "classifier"), ("agnostic", "fused")):
        out, _ = vitp("export-results", *runs.words[name], "--format", "label-png", "--variant", variant, "--json")
        folder = Path(json.loads(out)["results"])
        exports[name] = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}
    assert exports["ordinary"] == exports["agnostic"] and len(exports["ordinary"]) == 9
    words = (*runs.words["agnostic"], "--format", "label-png", "--variant", "generator")
    _, err = vitp("export-results", *words, code=2)
    assert "masks without class scores" in err


def test_prediction_is_the_classifiers(runs: Runs, project: Project, without: Path, vitp, tmp_path: Path) -> None:
    photo, found = min((project.data / "images/val").iterdir()), {}
    for name, recipe, flags in (("ordinary", project.recipe, ["--alpha", "1"]), ("agnostic", without, [])):
        words = ("predict", photo, "--recipe", recipe, *runs.words[name][5:], "--out", tmp_path / name, *flags)
        vitp(*words)
        (file,) = (tmp_path / name / "results").iterdir()
        found[name] = json.loads(file.read_text())
    assert not keys_of(found["agnostic"]) - {"generator"} & {"fused"}
    assert found["agnostic"]["alpha"] == 1
    ours, theirs = ({m["query"]: m["classifier"] for m in found[name]["masks"]} for name in ("agnostic", "ordinary"))
    assert ours.keys() == theirs.keys() and all("generator" not in mask for mask in found["agnostic"]["masks"])
    for query, said in theirs.items():
        assert ours[query] == {"class": said["class"], "score": pytest.approx(said["score"], abs=2e-5)}
    maps = [next((tmp_path / name / "semantic").iterdir()).read_bytes() for name in ("agnostic", "ordinary")]
    assert maps[0] == maps[1]
    _, err = vitp("predict", photo, "--recipe", without, "--out", tmp_path / "none", code=2)
    assert "no classifier given" in err and "--alpha 0" not in err


def test_a_generator_must_say_it_in_its_class(project: Project, without: Path, vitp, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(without.read_text().replace(":Agnostic", ":Undeclared"))
    _, err = vitp("generate-proposals", recipe, "--data-root", project.data, "--out", tmp_path / "run", code=4)
    assert "class_agnostic = True" in err


def masks(count: int = 2) -> np.ndarray:
    return np.arange(count)[:, None, None] == np.tile(np.arange(4) // 2, (4, 1))[None]


FILES = {
    "masks-alone": ({"masks": masks()}, [1.0, 1.0], ""),
    "scores": ({"masks": masks(), "scores": [0.25, 1.0]}, [0.25, 1.0], ""),
    "zero": ({"masks": masks(), "scores": [0.0, 0.5]}, [0.0, 0.5], ""),
    "probabilities": ({"mask_probs": masks() * 0.9, "scores": [0.5, 0.75]}, [0.5, 0.75], ""),
    "logits": ({"mask_logits": masks() * 4.0 - 2, "scores": [0.5, 0.75]}, [0.5, 0.75], ""),
    "no-mask": ({"masks": masks(0), "scores": np.zeros(0)}, [], ""),
    "above-1": ({"masks": masks(), "scores": [0.5, 1.5]}, None, r"the score 1.5 \(mask 1\) lies outside \[0, 1\]"),
    "nan": ({"masks": masks(), "scores": [0.5, np.nan]}, None, r"the score nan \(mask 1\) lies outside"),
    "one-score": ({"masks": masks(), "scores": [0.5]}, None, r"scores are .*1.*, not \(2,\)"),
    "of-classes": ({"masks": masks(), "scores": np.ones((2, 3))}, None, r"scores are .*2, 3.*, not \(2,\)"),
    "labels": (
        {"masks": masks(), "labels": [0, 1], "scores": [1, 1]},
        None,
        "has class scores, and most files here have no",
    ),
    "two-kinds": ({"masks": masks(), "mask_probs": masks() * 1.0}, None, "has mask_probs and masks of"),
    "none": ({"scores": [0.5]}, None, "has none of mask_logits"),
}


@pytest.fixture(scope="module")
def imported(project: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By kind of file the class logits of its image, or the reason why it has none."""
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import ProposalSettings
    from vitp_pipeline.execution.sharding import choose_shard
    from vitp_pipeline.stages.import_proposals import import_proposals

    found: dict[str, Any] = {}
    ids = sorted(path.stem for path in (project.data / "images/val").iterdir())
    recipe = load_recipe(project.recipe)
    settings = recipe.stage(ProposalSettings, config="(imported)", masks="lossless")
    for start in range(0, len(FILES), 6):
        folder = tmp_path_factory.mktemp("files")
        chosen = dict(zip(list(FILES)[start : start + 6], ids, strict=False))
        for name in ids:
            kind = {image: kind for kind, image in chosen.items()}.get(name, "masks-alone")
            np.savez(folder / f"{name}.npz", **{key: np.asarray(value) for key, value in FILES[kind][0].items()})
        out = tmp_path_factory.mktemp("run") / "run"
        outcome = import_proposals(recipe, settings, "npz", folder, project.data, out, choose_shard(None, {}))
        store = open_proposals(out)
        assert store.class_agnostic
        reasons = {int(image): reason for image, reason in outcome.failed}
        logits = {int(record.image_id): record.class_logits for record in store}
        found |= {kind: reasons.get(int(image), logits.get(int(image))) for kind, image in chosen.items()}
    return found


@pytest.mark.parametrize("kind", FILES)
def test_npz_files_without_classes(imported: dict[str, Any], kind: str) -> None:
    _, objectness, reason = FILES[kind]
    found = imported[kind]
    if objectness is None:
        assert isinstance(found, str) and re.search(reason, found) and "\n" not in found
        return
    assert not isinstance(found, str), found
    assert found.shape[0] == len(objectness) and np.isfinite(found).all()
    probs = torch.from_numpy(found).double().softmax(1).numpy()
    assert np.allclose(1 - probs[:, -1], objectness, atol=1e-6)
    assert np.allclose(probs[:, :-1], probs[:, :-1].mean(1, keepdims=True), atol=1e-9)


def test_files_of_both_sorts(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fewer fail alone; of equal numbers those without class scores."""
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.datasets import Dataset
    from vitp_pipeline.interop.masks_npz import NpzFolder

    dataset = Dataset(load_recipe(project.recipe).manifest, project.data, "val", 4)
    ids = [sample.image_id for sample in dataset.samples]
    for with_classes, agnostic in ((0, True), (1, True), (2, False), (3, False), (4, False)):
        folder = tmp_path / str(with_classes)
        folder.mkdir()
        for number, name in enumerate(ids):
            classes = {"labels": [0, 1], "scores": [1, 1]} if number < with_classes else {}
            np.savez(folder / f"{name}.npz", masks=masks(), **classes)
        source = NpzFolder(folder, dataset, 0.5)
        source.open()
        assert source.class_agnostic is agnostic
        said = capsys.readouterr().err
        assert ("class scores, unlike the others" in said) == (0 < with_classes < 4)
