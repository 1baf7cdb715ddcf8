from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import paired

ROOT = Path(__file__).parents[2]


def test_pairs_alternate_and_only_timed_runs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    order, clock = [], [0.0]
    took = {"ours": [9, 2, 2, 8], "bare": [9, 1, 3, 4]}  # the first of each warms up
    monkeypatch.setattr(paired.time, "perf_counter", lambda: clock[0])

    def work(name: str):
        def run() -> None:
            order.append(name)
            clock[0] += took[name].pop(0)

        return run

    found = paired.compare(work("ours"), work("bare"), units=6, repeats=3)
    assert order == ["ours", "bare"] * 4
    assert found.ours == (2, 2, 8) and found.bare == (1, 3, 4)
    assert found.ours_per_second == 3 and found.bare_per_second == 2 and found.ratio == 1.5
    assert found.ratios == (0.5, 1.5)


def test_peak_memory_sees_what_was_held_and_given_back() -> None:
    program = (
        "from benchmarks.paired import peak_memory as p\n"
        "a = p(); x = bytearray(b'1') * 80_000_000; del x; print(p() - a)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 75e6 < int(done.stdout) < 100e6


@pytest.mark.parametrize("photographs", [False, True])
def test_the_classifiers_benchmark_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photographs: bool
) -> None:
    from benchmarks import classifier

    tiny = "--backbone vit_tiny_patch16_224 --size 32 48 --points 6 --batch 2 --steps 1 --repeats 1 --device cpu"
    file = tmp_path / "figures.json"
    command = ["classifier", *tiny.split(), "--no-memory", "--json", str(file)]
    if photographs:
        (tmp_path / "photos").mkdir()
        Image.fromarray(np.full((70, 90, 3), 99, np.uint8)).save(tmp_path / "photos/a.jpg")
        command += ["--images", str(tmp_path / "photos")]
    monkeypatch.setattr(sys, "argv", command)
    classifier.main()
    figures, table = json.loads(file.read_text()), capsys.readouterr().out
    for task in ("train", "classify"):
        assert figures["tasks"][task]["ratio"] > 0 and len(figures["tasks"][task]["seconds"]["ours"]) == 1
        assert f"| {task} |" in table


def test_the_benchmark_of_stored_features_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import features

    Image.fromarray(np.full((70, 90, 3), 99, np.uint8)).save(tmp_path / "a.jpg")
    file = tmp_path / "figures.json"
    tiny = "--backbone vit_tiny_patch16_224 --size 32 48 --layers 1 2 --images 6 --points 6 --repeats 1"
    monkeypatch.setattr(sys, "argv", ["features", str(tmp_path), *tiny.split(), "--json", str(file)])
    features.main()
    found = json.loads(file.read_text())
    assert found["head"]["ratio"] == pytest.approx(found["head"]["others"] / found["head"]["first"])
    assert found["classify"]["without"] > 0 and 6 * 2 * 192 * 2 < found["bytes_per_image"] < 20_000
    assert capsys.readouterr().out.count("|") == 24


def test_both_ways_have_the_same_number_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a ViT with registers: N points, registers, patches."""
    from benchmarks import classifier

    command = "x --backbone vit_small_patch14_reg4_dinov2 --size 28 42 --points 5 --batch 1 --steps 1 --device cpu"
    monkeypatch.setattr(sys, "argv", command.split())
    options = classifier.parse()
    data = classifier.Data(tmp_path, 1, options.points, None)
    seen = []
    for way, block in (
        (ours := classifier.Ours(data, options), ours.model.backbone.blocks[0]),
        (bare := classifier.Bare(data, options), bare.vit.blocks[0]),
    ):
        block.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
        way.train()
    assert seen == [(1, 5 + 4 + 6, 384)] * 2


def test_the_benchmark_of_neighborhood_attention_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All ways agree, or it stops."""
    from benchmarks import neighborhood

    monkeypatch.setattr(neighborhood, "LAYERS", [(12, 13, 2, 1), (23, 22, 1, 2)])
    for more in ([], ["--tiles"]):
        monkeypatch.setattr(sys, "argv", ["neighborhood", "--repeats", "1", *more])
        neighborhood.main()
        table = capsys.readouterr().out.splitlines()
        assert len(table) == 4 and table[3].startswith("| 23×22 | 1 | 2 |")
        assert len({line.count("|") for line in table}) == 1


def test_the_benchmark_of_memory_measures_and_plots(tmp_path: Path) -> None:
    from benchmarks import evaluate_memory

    (tmp_path / "drawn").mkdir()
    evaluate_memory.draw(tmp_path / "drawn", 3)
    figures = {way: evaluate_memory.measure(tmp_path / "drawn", way) for way in evaluate_memory.WAYS}
    assert all(0 < found["start"] <= found["peak"] for found in figures.values())
    (result,) = (tmp_path / "drawn/run/evaluation").glob("*/shards/00000/done.json")
    assert json.loads(result.read_text())["failed"] == []
    evaluate_memory.plot([{"images": 3, **figures}, {"images": 9, **figures}], tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 300
    assert evaluate_memory.table([{"images": 3000, **figures}]).splitlines()[-1].startswith("| 3,000 | ")


def test_the_benchmark_of_imported_masks_runs(tmp_path: Path) -> None:
    from benchmarks import import_masks

    import_masks.draw(tmp_path, 2, 5, (60, 80))
    found = import_masks.measure(tmp_path)
    assert found["images"] == 2 and 0 < found["start"] <= found["peak"] and found["stored_kib"] > 0
    assert found["cpu"] == pytest.approx(found["read"] + found["points"] + found["store"])
    assert import_masks.table(found).splitlines()[-1].startswith("| 2 | ")


def test_the_benchmark_of_sampling_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import sampling
    from vitp_pipeline.demo.scenes import draw_scenes

    draw_scenes(tmp_path, "train", 2, seed=0)
    file = tmp_path / "figures.json"
    words = f"sampling --data-root {tmp_path} --manifest demo --size 28 42 --points 5 --repeat 1 --json {file}"
    monkeypatch.setattr(sys, "argv", words.split())
    sampling.main()
    figures = json.loads(file.read_text())["ms"]
    assert {f"draw {mode}" for mode in sampling.MODES} < figures.keys() and min(figures.values()) > 0
    assert capsys.readouterr().out.startswith("2 images of demo, 28×42, N = 5")


def test_the_benchmark_of_stage_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import proposals
    from vitp_pipeline.demo.scenes import draw_scenes

    draw_scenes(tmp_path, "val", 2, seed=0)
    file = tmp_path / "figures.json"
    words = f"proposals demo --data-root {tmp_path} --images 2 --repeats 1 --device cpu --json {file}"
    monkeypatch.setattr(sys, "argv", words.split())
    proposals.main()
    figures = json.loads(file.read_text())
    assert figures["ratio"] > 0 and figures["bytes_per_image"] > 0 and figures["settings"]["images"] == 2
    assert 0.2 < figures["cpu_ratio"] < 1.5 and len(figures["cpu_seconds"]["ours"]) == 1
    assert capsys.readouterr().out.count("|") == 18
    monkeypatch.setattr(sys, "argv", [*words.split(), "--profile"])
    proposals.main()
    table = dict(re.findall(r"\| (.*) \| ([0-9.]+) \|", capsys.readouterr().out))
    assert len(table) == 5 and float(table["choose points"]) > 0


def test_the_benchmark_of_semantic_maps_runs_on_real_and_drawn_logits(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both sides draw the same labels, but in ties."""
    from benchmarks import semantic

    cases = [semantic.real_case(shared / "data/camvid", 1), semantic.drawn_case("drawn", (60, 90), 9, 3, 5, 2)]
    for case in cases:
        _, untied, total = semantic.differing_pixels(case)
        assert untied == 0 and total == sum(truth.size for truth in case.truth)
    monkeypatch.setattr(semantic, "drawn_case", lambda *_: cases[1])
    monkeypatch.setattr(sys, "argv", ["semantic", "--live", "3", "--alphas", "3", "--repeats", "1"])
    semantic.main()
    assert capsys.readouterr().out.count("drawn, Q = 9, 3 live") == 2


def test_the_benchmark_of_storage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import semantic, storage
    from vitp_pipeline.artifacts.mask_codec import PRESETS
    from vitp_pipeline.datasets.components import component_segments

    def small(name: str, size: tuple[int, int], queries: int, live: int, classes: int, images: int) -> semantic.Case:
        return semantic.drawn_case(name, (64, 96), 8, 3, 5, images)

    def photographs(name: str, root: Path, count: int) -> storage.Case:
        case = small(name, (0, 0), 0, 0, 0, count)
        truth, picture = case.truth[0].astype(np.int16), np.full((64, 96, 3), 99, np.uint8)
        segments = component_segments(truth, np.zeros(5, bool))
        parts = case.masks[0], case.classes[0], case.views[0], truth, segments, picture
        return storage.Case(name, "d2", np.zeros(5, bool), [storage.Image(*parts)])

    monkeypatch.setattr(storage, "drawn_case", small)
    monkeypatch.setattr(storage, "real_case", photographs)
    file = tmp_path / "figures.json"
    command = ["storage", "--camvid", str(tmp_path), "--live", "3", "--repeats", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    storage.main()
    figures, table = json.loads(file.read_text()), capsys.readouterr().out
    for rows in figures["storage"].values():
        assert set(rows) == {*PRESETS, "float16"}
        assert rows["lossless"]["ratio"] < rows["bounded"]["ratio"] < rows["compact"]["ratio"]
        assert rows["lossless"]["kept"] == 8 and rows["bounded"]["kept"] == 3
    photo = figures["storage"]["camvid"]
    assert photo["panoptic-exact"]["delta_PQ"] == 0 and abs(photo["bounded"]["delta_mIoU"]) < 1
    assert set(figures["reading"]["camvid"]) == set(PRESETS) and "| 96×64 | camvid |" in table


def test_a_profile_of_reading_says_where_the_time_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import reading, storage

    small = storage.drawn("drawn", (256, 512), 25, 19)
    monkeypatch.setattr(storage, "drawn", lambda *_: small)
    Image.fromarray(np.full((30, 40, 3), 99, np.uint8)).save(tmp_path / "a.png")
    file = tmp_path / "figures.json"
    words = ["reading", "--profile", str(tmp_path / "a.png"), "--repeats", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    reading.main()
    found, table = json.loads(file.read_text()), capsys.readouterr().out
    assert found["masks"] > found["masks: zstd, shuffling"] > found["masks: checksum"] > 0
    assert "| JPEG, Pillow |" in table and "| 1.00 |" in table


def test_the_suite_runs_a_row_in_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import __main__ as suite

    words = ["benchmarks", "--data", str(tmp_path), "--threads", "1", "--quick", "--only", "memory"]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(tmp_path / "figures.json")])
    suite.main()
    (line,) = json.loads((tmp_path / "figures.json").read_text())["rows"]["memory"]
    assert line["value"] > 0 and line["goal"] == -0.2 and line["reached"] == (line["value"] <= 0.2)
    assert "| peak memory of evaluate" in capsys.readouterr().out


def test_the_page_says_what_was_reached() -> None:
    from benchmarks.lines import Line, of_times
    from benchmarks.page import machine, page

    lines = [
        Line("fast", "a peer", "2 images/s", "1 images/s", 2.0, 1.5, 2.5, 1.9),
        Line("long", "", "3 s", "", 3.0, goal=-2.0, unit="s"),
        Line("seen", "", "", "", 1.0),
    ]
    assert [line.reached for line in lines] == [True, False, None]
    # twice and four times as long as the other
    slow = of_times("slow", "", paired.Comparison(1, (4.0, 4.0), (1.0, 2.0)), -2.0)
    assert (slow.value, slow.lowest, slow.highest, slow.reached) == (pytest.approx(4 / 1.5), 2.0, 4.0, False)
    rows = {"one": [asdict(lines[0])], "two": [asdict(line) for line in lines[1:]]}
    text = page({"machine": machine(2), "minutes": 3, "rows": rows, "again": ["two"]})
    assert "| fast | a peer | 2 images/s | 1 images/s | 2× (1.5, 2.5) | ≥ 1.9× | yes |" in text
    assert "| long |  | 3 s |  | 3 s | ≤ 2 s | no |" in text and "2 threads" in text
    assert "Measured anew after it, by `--only … --update`: `two`." in text


def test_the_page_in_docs_is_that_of_its_figures() -> None:
    from benchmarks.page import page

    figures = json.loads((ROOT / "docs/measured/performance.json").read_text(encoding="utf-8"))
    assert page(figures) == (ROOT / "docs/performance.md").read_text(encoding="utf-8")


def test_rows_that_are_measured_anew_replace_theirs() -> None:
    from benchmarks.__main__ import replaced

    before = {"machine": {"threads": 2}, "minutes": 9, "rows": {"classify": [1], "pq": [2]}}
    after = replaced(before, {"machine": {"threads": 2}, "minutes": 1, "rows": {"classify": [3], "help": [4]}})
    assert after["rows"] == {"classify": [3], "pq": [2], "help": [4]} and after["minutes"] == 9
    assert after["again"] == ["classify", "help"]
    with pytest.raises(SystemExit, match="another machine"):
        replaced(before, {"machine": {"threads": 1}, "minutes": 1, "rows": {}})


def test_the_benchmark_of_the_metrics_compares_equal_figures() -> None:
    """It fails unless every count is panopticapi's and every precision pycocotools' own."""
    from benchmarks.metrics import instances, panoptic

    assert instances(12, 1).units == 12 and panoptic(3, 1).units == 3


def test_a_finished_run_is_taken_up_without_its_images(tmp_path: Path) -> None:
    from benchmarks.resume import finished_run

    done = subprocess.run(finished_run(tmp_path, 40), capture_output=True, text=True, check=True)
    assert "nothing to do, 40 images were done before" in done.stderr + done.stdout


@pytest.mark.parametrize("kind", ["eomt", "sam"])
def test_a_row_of_the_transformers_generators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    pytest.importorskip("transformers")
    from benchmarks import transformers_generators as benchmark
    from tests.generators.huggingface.sam_making import PLAIN

    vit = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_blocks": 1, "image_size": 64}
    network = {"num_queries": 4, **vit} if kind == "eomt" else PLAIN
    monkeypatch.setitem(benchmark.NETWORKS, "tiny", {"model_type": kind, **network})
    Image.fromarray(np.full((48, 64, 3), 99, np.uint8)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(sys, "argv", ["benchmark", "--images", str(tmp_path), "--count", "1", "--only", "tiny"])
    benchmark.main()
    cells = [cell.strip() for cell in capsys.readouterr().out.strip().strip("|").split("|")]
    assert cells[0] == "tiny" and len(cells) == 5
    assert float(cells[2]) >= 0 and float(cells[4].removesuffix(" MiB")) > 0


@pytest.mark.slow
def test_the_benchmark_of_the_report_writes_a_page_of_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import report
    from vitp_pipeline.config.recipe import load_recipe
    from vitp_pipeline.config.settings import TrainSettings
    from vitp_pipeline.demo.scenes import draw_scenes
    from vitp_pipeline.stages.train_classifier import train_classifier

    for split in ("train", "val"):
        draw_scenes(tmp_path, split, 2, seed=0)
    recipe = load_recipe("demo")
    train_classifier(recipe, recipe.stage(TrainSettings, epochs=1), tmp_path, tmp_path / "run")
    model = tmp_path / "run/classifier/default/model.safetensors"
    words = f"report demo --data-root {tmp_path} --classifier {model} --images 3 --work {tmp_path}/pages"
    monkeypatch.setattr(sys, "argv", words.split())
    report.main()
    assert "| 3 |" in capsys.readouterr().out
    assert "3 images" in (tmp_path / "pages/3/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_benchmark_of_predict_with_masks_runs(tmp_path: Path) -> None:
    from benchmarks import predict_masks

    predict_masks.draw(tmp_path, 0.02, 3, 1)
    found = predict_masks.measure(tmp_path)
    assert found["seconds"] > 0 and found["peak"] > 50
    result = json.loads((tmp_path / "found/results/0.json").read_text())
    assert {m["query"] for m in result["masks"]} == {0, 1, 2} and result["masks_from"]["format"] == "coco"


@pytest.mark.slow
def test_the_benchmark_of_stored_masks_runs(tmp_path: Path) -> None:
    from benchmarks import stored_masks

    stored_masks.prepare(tmp_path, 0.02, 3, 1)
    for command in ("import-proposals", "classify", "export-results, panoptic"):
        found = stored_masks.measure(tmp_path, command)
        assert found["seconds"] > 0 and found["peak"] > 50
    (panoptic,) = tmp_path.glob("run/exports/coco-panoptic-*/results/panoptic/0.png")
    assert panoptic.stat().st_size
