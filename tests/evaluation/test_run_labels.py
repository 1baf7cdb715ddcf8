from __future__ import annotations

from pathlib import Path

import pytest

from tests.local_runs import create_or_check
from vitp_pipeline.artifacts.run import StageRun
from vitp_pipeline.evaluation.run_labels import facts_of, labels
from vitp_pipeline.runs.status import print_status, run_status
from vitp_pipeline.storage.run_store import LocalStore
from vitp_pipeline.storage.sealed import write_sealed


def classifier(run: Path, name: str, digest: str) -> None:
    create_or_check(run / "classifier" / name, {"stage": "classifier"}, ("a",))
    write_sealed(run / "classifier" / name / "model.json", {"sha256": digest})


def scores(run: Path, folder: str, digest: str, **settings) -> StageRun:
    identity = {"stage": "class_scores", "classifier": digest, "proposals": "f" * 64, "settings": settings}
    return create_or_check(run / "class_scores" / folder, identity, ("a",))


def evaluation(run: Path, folder: str, of: str, points: str = "max", sweep: int = 3, **settings) -> StageRun:
    identity = {"stage": "evaluation", "class_scores": of + "0" * 52, "points": points, "settings": settings}
    alphas = [n / (sweep - 1) for n in range(sweep)]
    return create_or_check(run / "evaluation" / folder, {**identity, "alphas": alphas}, ("a",))


def test_what_differs_is_told(tmp_path: Path) -> None:
    classifier(tmp_path, "deep", "d" * 64)
    classifier(tmp_path, "[b]odd", "e" * 64)
    scores(tmp_path, "1" * 12, "d" * 64)
    scores(tmp_path, "2" * 12, "e" * 64, temperature=0.4)
    scores(tmp_path, "3" * 12, "9" * 64, points="multi", flip=True)  # trained elsewhere
    stages = [
        evaluation(tmp_path, "a", "1" * 12, alpha=0.7),
        evaluation(tmp_path, "b", "2" * 12),
        evaluation(tmp_path, "c", "3" * 12, "multi"),
        evaluation(tmp_path, "d", "4" * 12),  # its scores are gone
    ]
    facts = facts_of(LocalStore(tmp_path), stages)
    assert labels(facts) == [
        "deep, max point, α = 0.7",
        "[b]odd, max point, α = 0.4",
        "99999999, multi point, α = 0.4",
        "max point, α = 0.4",
    ]
    assert labels(facts[:2]) == ["deep, α = 0.7", "[b]odd, α = 0.4"]
    assert labels(facts[:1]) == [""] and labels(facts[:1], ("points",)) == ["max point"] and labels([]) == []


def test_settings_are_told_where_nothing_else_tells_two_apart(tmp_path: Path) -> None:
    scores(tmp_path, "1" * 12, "d" * 64)
    stages = [
        evaluation(tmp_path, "a", "1" * 12),
        evaluation(tmp_path, "b", "1" * 12, sweep=11),
        evaluation(tmp_path, "c", "1" * 12, tasks=["instance"], components=True),
        evaluation(tmp_path, "d", "1" * 12, tasks=["semantic"]),
    ]
    told = labels(facts_of(LocalStore(tmp_path), stages))
    assert told == ["", "11 α measured", 'components = true, tasks = ["instance"]', 'tasks = ["semantic"]']
    others = [
        evaluation(tmp_path, "e", "1" * 12, formula="raw"),
        evaluation(tmp_path, "g", "1" * 12, alpha=0.0),
    ]
    told = labels(facts_of(LocalStore(tmp_path), [stages[0], *others]))
    assert told == ["α = 0.4, renormalized", "α = 0.4, raw", "α = 0, renormalized"]


@pytest.mark.parametrize("wrong", [{"settings": []}, {"settings": {"alpha": "x"}}, {"class_scores": 3}, {"alphas": 1}])
def test_of_a_damaged_identity_nothing_is_told(tmp_path: Path, wrong: dict) -> None:
    scores(tmp_path, "1" * 12, "d" * 64)
    good = evaluation(tmp_path, "a", "1" * 12, alpha=0.7)
    bad = StageRun(good.store, tmp_path / "evaluation/b", good.identity | wrong, ("a",), 1, 1)
    labels(
        facts_of(
            LocalStore(tmp_path),
            [StageRun(bad.store, bad.folder, good.identity | {"settings": {"formula": 1}}, ("a",), 1, 1)],
        )
    )
    assert labels(facts_of(LocalStore(tmp_path), [good, bad]), ("alpha",)) == [
        "dddddddd, max point, α = 0.7, renormalized",
        "",
    ]


def test_a_streamed_evaluation_holds_its_classifier_itself(tmp_path: Path) -> None:
    classifier(tmp_path, "deep", "d" * 64)
    stream = {"classifier": "d" * 64, "classify": {"points": "multi", "flip": True}}
    identity = {"stage": "evaluation", "stream": stream, "points": "multi", "alphas": [0, 0.4, 1], "settings": {}}
    streamed = create_or_check(tmp_path / "evaluation/s", identity, ("a",))
    (facts,) = facts_of(LocalStore(tmp_path), [streamed])
    assert facts["classifier"] == "deep" and facts["points"] == "multi point" and facts["flip"] == "flip = true"


def test_status_names_scores_and_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier(tmp_path, "deep", "d" * 64)
    (tmp_path / "digests.json").write_text("{")  # only a memory
    scores(tmp_path, "1" * 12, "d" * 64)
    scores(tmp_path, "2" * 12, "d" * 64, temperature=0.5)
    evaluation(tmp_path, "a" * 12, "1" * 12, alpha=0.7)
    entries = run_status(tmp_path)
    expected = {
        "classifier/deep": "",
        "class_scores/111111111111": "deep, max point",
        "class_scores/222222222222": "deep, max point, temperature = 0.5",
        "evaluation/aaaaaaaaaaaa": "deep, max point, α = 0.7",
    }
    assert {entry["stage"]: entry["label"] for entry in entries} == expected
    print_status(entries, as_json=False)
    out = capsys.readouterr().out
    assert all(stage in out and label in out for stage, label in expected.items())
