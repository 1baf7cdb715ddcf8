from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from vitp_pipeline.config.flags import parse_changes
from vitp_pipeline.config.identity import identity_of
from vitp_pipeline.config.recipe import load_recipe
from vitp_pipeline.config.settings import TABLES, ClassifySettings, EvaluateSettings, ProposalSettings, TrainSettings
from vitp_pipeline.errors import InputError, UsageError
from vitp_pipeline.shipped import find_toml, shipped

MINIMAL = 'manifest = "camvid"\n[generate-proposals]\nconfig = "x.py"\n'


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "r.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_shipped_recipes_parse_in_every_stage() -> None:
    names = {p.stem for p in shipped("stages").glob("*.toml")}
    assert {"camvid", "coco-sample"} <= names
    for name in names:
        recipe = load_recipe(name)
        assert recipe.path == shipped("stages") / f"{name}.toml" and recipe.title
        for kind in TABLES.values():
            recipe.stage(kind)
        assert recipe.stage(EvaluateSettings).alpha == 0.4


def test_flags_win_over_keys_and_keys_over_defaults(write) -> None:
    recipe = load_recipe(write(MINIMAL + 'points = ["max", "center"]\n[evaluate]\nalpha = 0.7\n'))
    assert recipe.stage(EvaluateSettings).alpha == 0.7
    assert recipe.stage(EvaluateSettings, alpha=None, formula=None).alpha == 0.7
    assert recipe.stage(EvaluateSettings, alpha=0.1, formula="raw") == EvaluateSettings(alpha=0.1, formula="raw")
    proposals = recipe.stage(ProposalSettings, batch_size=3)
    assert (proposals.points, proposals.batch_size, proposals.split) == (("max", "center"), 3, "val")
    assert recipe.stage(TrainSettings) == TrainSettings()


def test_presets_give_what_a_recipe_does_not_say(write) -> None:
    every = {p.stem for p in shipped("stages/presets").glob("*.toml")} - {"official-oneformer", "official-internimage"}
    names = {n for n in every if not n.startswith("views-")}
    assert every - names == {"views-multiscale", "views-ade20k-896", "views-slide-1024"}
    assert names == {"ade20k", "cityscapes", "coco", "coco-stuff", "objects365"}
    found = {n: load_recipe(write(MINIMAL)).stage(TrainSettings, preset=n) for n in names}
    for settings in found.values():  # what the paper says of all (§4.2)
        assert (settings.optimizer, settings.lr, settings.clip, settings.weight_decay) == ("sgd", 0.01, 1.0, 0.0)
        assert (settings.warmup_steps, settings.batch_size, settings.head) == (1000, 4 * 20, "linear")
    assert {n: s.epochs for n, s in found.items() if n != "objects365"} == {
        "ade20k": 60,
        "cityscapes": 60,
        "coco": 30,
        "coco-stuff": 30,
    }
    assert {n for n, s in found.items() if s.image_size != (518, 518)} == {"cityscapes"}

    recipe = load_recipe(write(MINIMAL + '[train-classifier]\npreset = "coco"\nepochs = 3\nlr = 0.1\n'))
    settings = recipe.stage(TrainSettings, lr=0.2)
    assert (settings.points_per_image, settings.epochs, settings.lr) == (150, 3, 0.2)
    same = dataclasses.replace(settings, preset="")
    assert identity_of(settings) == identity_of(same)  # the name does not count, the keys do
    for own, expected in (("steps = 7", (0, 7, 1000, 0.05)), ("warmup = 0.1", (30, 0, -1, 0.1))):
        settings = load_recipe(write(MINIMAL + f'[train-classifier]\npreset = "coco"\n{own}\n')).stage(TrainSettings)
        assert (settings.epochs, settings.steps, settings.warmup_steps, settings.warmup) == expected
    with pytest.raises(InputError, match=r"imagenet.*ade20k"):
        recipe.stage(TrainSettings, preset="imagenet")
    own = write("epoch = 3").rename(recipe.path.with_name("own.toml"))
    with pytest.raises(UsageError, match=r"epoch.*Did you mean 'epochs'"):
        recipe.stage(TrainSettings, preset=str(own))


@pytest.mark.parametrize(
    ("preset", "size", "steps", "warmup", "lr", "batch"),
    [
        ("ade20k", "base", 60 * 320, 0, 9e-3, 80),
        ("ade20k", "large", 60 * 320, 1000, 3e-2, 80),  # that yaml's warm-up is longer than its training
        ("cityscapes", "base", 60 * 345, 0, 1e-2, 80),
        ("cityscapes", "large", 60 * 575, 0, 3e-3, 4 * 12),
        ("coco", "base", 30 * 1250, 0, 6e-3, 80),
        ("coco", "large", 30 * 1250, 0, 1e-2, 80),
        ("coco-stuff", "large", 22 * 1250, 1250, 1e-2, 80),
        ("objects365", "base", 3 * 6222, 0, 1e-2, 4 * 70),
        ("objects365", "large", 5 * 2177, 2177, 1e-2, 80),
    ],
)
def test_presets_say_in_keys_what_the_authors_configurations_run(
    write, preset: str, size: str, steps: int, warmup: int, lr: float, batch: int
) -> None:
    """Their comments, over the preset, are `OFFICIAL_EPOCH_LENGTH` · epochs and the rates of `dinov2/configs`."""
    text = (shipped("stages/presets") / f"{preset}.toml").read_text(encoding="utf-8")
    own = re.search(rf"^#   {size} +(steps = .*(\n#    .*)*)", text, re.MULTILINE)[1]
    own = re.sub(r"\(.*?\)", "", own.replace("\n#", " "))  # notes, and another generator's
    keys = {
        key: float(value) if "." in value else int(value) for key, value in re.findall(r"(\w+) = ([\d.]+\d|\d)", own)
    }
    settings = load_recipe(write(MINIMAL)).stage(TrainSettings, preset=preset, **keys)
    assert (settings.epochs, settings.steps, settings.warmup_steps) == (0, steps, warmup)
    assert (settings.lr, settings.batch_size, settings.warmup) == (lr, batch, 0.05)
    assert settings.point_lr == 0.01 or settings.lr == 0.01  # fixed in their code


@pytest.mark.parametrize(
    ("keys", "flags", "epochs", "steps"),
    [
        ("", {}, 30, 0),
        ("epochs = 4", {}, 4, 0),
        ("steps = 40", {}, 0, 40),
        ("epochs = 4", {"steps": 40}, 0, 40),
        ("steps = 40", {"epochs": 4}, 4, 0),
        ("epochs = 4", {"steps": 0}, 4, 0),
        ("steps = 40", {"steps": 0}, 30, 0),
    ],
)
def test_length_is_given_in_epochs_or_in_steps(write, keys: str, flags: dict, epochs: int, steps: int) -> None:
    settings = load_recipe(write(MINIMAL + f"[train-classifier]\n{keys}\n")).stage(TrainSettings, **flags)
    assert (settings.epochs, settings.steps) == (epochs, steps)
    assert dataclasses.replace(settings, seed=1).total_steps(6) == (steps or 6 * epochs)
    identity = {"epochs": epochs} if epochs != 30 else {}
    assert identity_of(settings) == identity | ({"steps": steps} if steps else {})


def test_presets_of_views_give_the_official_frames(write) -> None:
    recipe = load_recipe(write(MINIMAL))
    found = {n: recipe.stage(ProposalSettings, preset=f"views-{n}") for n in ("multiscale", "ade20k-896", "slide-1024")}
    for size, shorter_sides in {  # shorter sides in the released configs
        640: [320, 480, 640, 800, 960, 1120],
        1280: [640, 960, 1280, 1600, 1920, 2240],
        1024: [512, 768, 1024, 1280, 1536, 1792],
    }.items():
        assert [int(size * scale + 0.5) for scale in found["multiscale"].scales] == shorter_sides
    assert [int(896 * scale + 0.5) for scale in found["ade20k-896"].scales] == [768, 832, 896, 960, 1024]
    assert [s.flip for s in found.values()] == [True, True, False]
    assert (found["slide-1024"].window, found["slide-1024"].stride) == ((1024, 1024), (512, 512))
    assert recipe.stage(ProposalSettings, preset="views-multiscale", scales=[1]).scales == (1,)
    with pytest.raises(UsageError, match="no key 'backbone'"):
        recipe.stage(ProposalSettings, preset="ade20k")
    for faulty in ({"scales": []}, {"scales": [0]}, {"window": [4]}, {"stride": [1, 2, 3]}):
        with pytest.raises(UsageError, match=r"takes a list|outside"):
            recipe.stage(ProposalSettings, **faulty)


def test_integers_stand_for_floats_and_only_for_them(write) -> None:
    recipe = load_recipe(write(MINIMAL + "[evaluate]\nalpha = 1\n[train-classifier]\ncrop_scale = [0.5, 1]\n"))
    assert isinstance(recipe.stage(EvaluateSettings).alpha, float)
    assert recipe.stage(TrainSettings).crop_scale == (0.5, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[generate-proposals]\nconfig = 'x'\n", ["`manifest` is missing"]),
        ("manifest = 3\n", ["`manifest` is missing"]),
        (MINIMAL + "[evaluates]\nalpha = 1\n", ["table 'evaluates'", "'evaluate'?"]),
        ("titel = 'x'\n" + MINIMAL, ["key 'titel'", "'title'?"]),
        ("evaluate = 3\n" + MINIMAL, ["'evaluate'"]),
        (MINIMAL + "[evaluate]\nalfa = 0.4\n", ["[evaluate]", "'alfa'", "'alpha'?"]),
        (MINIMAL + "[train-classifier]\nimagesize = [2, 2]\n", ["[train-classifier]", "'imagesize'", "'image_size'?"]),
        (MINIMAL + "[classify]\nzzzzz = 1\n", ["'zzzzz'", "Known are: name, classifier"]),
    ],
)
def test_unknown_tables_and_keys(write, text: str, words: list[str]) -> None:
    path = write(text)
    with pytest.raises(UsageError) as info:
        load_recipe(path)
    for word in [str(path), *words]:
        assert word in str(info.value)


@pytest.mark.parametrize(
    ("kind", "line", "words"),
    [
        (EvaluateSettings, "alpha = '0.4'", ["alpha", "wrong type"]),
        (EvaluateSettings, "alpha = true", ["alpha", "wrong type"]),
        (EvaluateSettings, "alpha = 1.01", ["alpha = 1.01", "outside [0, 1]"]),
        (EvaluateSettings, "alpha = -0.5", ["alpha = -0.5", "outside [0, 1]"]),
        (EvaluateSettings, "alpha = nan", ["outside [0, 1]"]),
        (EvaluateSettings, "formula = 'geometric'", ['"geometric"', "raw, renormalized"]),
        (TrainSettings, "epochs = 3.5", ["epochs", "wrong type"]),
        (TrainSettings, "epochs = true", ["epochs", "wrong type"]),
        (TrainSettings, "epochs = -1", ["epochs", "outside [0, "]),
        (TrainSettings, "epochs = 0", ["epochs = 0 needs steps", "exactly one"]),
        (TrainSettings, "epochs = 30\nsteps = 7", ["steps and epochs are both set", "exactly one"]),
        (TrainSettings, "warmup = 0.1\nwarmup_steps = 0", ["warmup_steps and warmup are both set"]),
        (TrainSettings, "warmup_steps = -2", ["warmup_steps = -2"]),
        (TrainSettings, "flip = 1", ["flip", "wrong type"]),
        (TrainSettings, "image_size = 448", ["image_size", "wrong type"]),
        (TrainSettings, "image_size = [448]", ["image_size", "wrong length"]),
        (TrainSettings, "image_size = [448, '448']", ["image_size", "wrong type"]),
        (TrainSettings, "feature_layers = ['last']", ["feature_layers", "wrong type"]),
        (TrainSettings, "hold_out = -1", ["hold_out", "outside [0, "]),
        (TrainSettings, "norm = 'group'", ['"group"', "layer, batch"]),
        (TrainSettings, "batch_size = 0", ["batch_size", "outside [1, "]),
        (
            ProposalSettings,
            "config = 'x'\npoints = ['max', 'mean']",
            ['"mean"', "center, local_maxima, max, multi, random"],
        ),
        (ProposalSettings, "config = 'x'\npoints = [1]", ["points", "wrong type"]),
        (ProposalSettings, "config = 'x'\nlimit = -1", ["limit", "outside [0, "]),
        (ProposalSettings, "split = 'val'", ["needs the key 'config'"]),
        (ClassifySettings, "points = 'mean'", ['"mean"']),
        (ClassifySettings, "chunk = -1", ["chunk", "outside [0, "]),
        (ClassifySettings, "average = 'mean'", ['"mean"', "auto, probabilities, log-probabilities"]),
        (ProposalSettings, "config = 'x'\nlocal_maxima = 0", ["local_maxima = 0", "outside [1, "]),
        (EvaluateSettings, "mask_quality = 'yes'", ["mask_quality", "wrong type"]),
    ],
)
def test_values_that_cannot_be(write, kind: type, line: str, words: list[str]) -> None:
    table = next(name for name, k in TABLES.items() if k is kind)
    path = write(f'manifest = "camvid"\n[{table}]\n{line}\n')
    recipe = load_recipe(path)
    with pytest.raises(UsageError) as info:
        recipe.stage(kind)
    assert info.value.exit_code == 2
    for word in [str(path), f"[{table}]", *words]:
        assert word in str(info.value)


@pytest.mark.parametrize(
    ("table", "line", "words"),
    [
        ("generate-proposals", "mirror = true", "has no key 'mirror'. vitp 0.2 calls it 'flip'"),
        ("generate-proposals", "spread = 4", "has no key 'spread'. vitp 0.2 calls it 'multi'"),
        ("generate-proposals", "peaks = 4", "has no key 'peaks'. vitp 0.2 calls it 'local_maxima'"),
        (
            "generate-proposals",
            "config = 'x'\npoints = ['max', 'centre']",
            "vitp 0.2 calls it 'center'. Choose among: ",
        ),
        ("train-classifier", "taps = [8]", "has no key 'taps'. vitp 0.2 calls it 'feature_layers'"),
        ("train-classifier", "fit = 'discriminant'", "vitp 0.2 calls it 'lda'. Choose one of: "),
        ("classify", "points = 'spread'", "vitp 0.2 calls it 'multi'"),
        ("classify", "points = 'peaks'", "vitp 0.2 calls it 'local_maxima'"),
        ("evaluate", "formula = 'renormalised'", "vitp 0.2 calls it 'renormalized'"),
        ("evaluate", "taps = 1", "has no key 'taps'. Did you mean 'tasks'?"),  # another table has it
    ],
)
def test_words_of_the_first_version(write, table: str, line: str, words: str) -> None:
    with pytest.raises(UsageError) as info:
        load_recipe(write(f'manifest = "camvid"\n[{table}]\n{line}\n')).stage(TABLES[table])
    said = str(info.value)
    assert words in said and f"[{table}]" in said and "\n" not in said and info.value.exit_code == 2


def test_flags_are_checked_like_keys(write) -> None:
    recipe = load_recipe(write(MINIMAL))
    with pytest.raises(UsageError, match=r"alpha = 2 is outside"):
        recipe.stage(EvaluateSettings, alpha=2.0)
    with pytest.raises(UsageError, match="batch_size"):
        recipe.stage(ProposalSettings, batch_size=-1)


def test_not_toml_and_not_there(write, tmp_path: Path) -> None:
    path = write("manifest = \n")
    with pytest.raises(InputError, match="not a TOML file"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a TOML file"):
        load_recipe(path)
    with pytest.raises(InputError, match="camvid"):
        load_recipe("camvit")
    with pytest.raises(InputError, match="no such file"):
        load_recipe(tmp_path / "absent.toml")


def test_find_file(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, here = tmp_path / "data {x}", tmp_path / "here"
    (root / "weights").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "data {x}"))
    (root / "weights/a.pth").touch()
    (tmp_path / "beside.pth").touch()
    (here / "beside.pth").touch()
    (here / "cwd.pth").touch()
    recipe = load_recipe(write(MINIMAL))
    assert recipe.find_file("{data_root}/weights/a.pth", root) == root / "weights/a.pth"
    assert recipe.find_file("~/weights/a.pth", root) == root / "weights/a.pth"
    assert recipe.find_file("beside.pth", root) == tmp_path / "beside.pth"
    assert recipe.find_file("cwd.pth", root) == here / "cwd.pth"
    assert recipe.find_file(str(root / "weights/a.pth"), root) == root / "weights/a.pth"
    for absent in ("{data_root}/b.pth", "{data-root}/weights/a.pth", "{", "weights", ""):
        with pytest.raises(InputError, match="does not exist") as info:
            recipe.find_file(absent, root)
        assert "r.toml" in str(info.value)


def test_find_toml_takes_names_paths_and_neighbors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_toml("camvid", "manifests") == shipped("manifests") / "camvid.toml"
    assert find_toml("camvid.toml", "manifests") == shipped("manifests") / "camvid.toml"
    (tmp_path / "camvid.toml").touch()
    assert find_toml("camvid.toml", "manifests").samefile(tmp_path / "camvid.toml")  # a path wins
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/camvid.toml").touch()
    assert find_toml("camvid.toml", "manifests", tmp_path / "sub") == tmp_path / "sub/camvid.toml"


def test_changes_of_the_command_line() -> None:
    words = ["lr=0.003", "feature_layers=[8, 9]", "head=mlp", 'fit = "gradient"', "flip=false"]
    expected = {"lr": 0.003, "feature_layers": [8, 9], "head": "mlp", "fit": "gradient", "flip": False}
    assert parse_changes(words) == expected
    assert parse_changes([f"lr={'[' * 20_000}"]) == {"lr": "[" * 20_000}  # too deep for TOML: plain text
    settings = load_recipe("demo").stage(TrainSettings, **parse_changes(words))
    assert settings.feature_layers == (8, 9) and settings.lr == 0.003 and not settings.flip
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_changes(["lr"])
    with pytest.raises(UsageError, match="'learning_rate'"):
        load_recipe("demo").stage(TrainSettings, **parse_changes(["learning_rate=1"]))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('data = ["fine", "masks"]', "'masks'"),
        ("data = []", "nothing to train on"),
        ("coarse_erosion = 1.0", "coarse_erosion"),
        ("color_jitter = 1.6", "color_jitter"),
        ("color_jitter = 2.0", "color_jitter"),
        ("crop_scale = [0.8, 0.5]", "crop_scale"),
        ("crop_scale = [0.0, 0.5]", "crop_scale"),
    ],
)
def test_what_is_trained_on_is_checked(write, text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        load_recipe(write(MINIMAL + f"[train-classifier]\n{text}\n")).stage(TrainSettings)
