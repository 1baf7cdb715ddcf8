from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitp_pipeline.cli import commands
from vitp_pipeline.cli import main as cli
from vitp_pipeline.cli.app import app, one_json
from vitp_pipeline.cli.commands import load_command
from vitp_pipeline.errors import UserError

COMMANDS = (
    "generate-proposals",
    "train-classifier",
    "classify",
    "evaluate",
    "submit",
    "report",
    "compare",
    "predict",
    "status",
    "verify",
    "gc",
    "demo",
    "info",
    "import-checkpoint",
    "import-proposals",
    "export-classifier",
    "export-results",
    "check-dataset",
    "list-images",
    "prepare",
    "generators",
    "backbones",
    "doctor",
    "init",
    "run",
)
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "mmengine",
    "mmcv",
    "mmseg",
    "mmdet",
    "zarr",
    "pyarrow",
    "numpy",
    "scipy",
    "PIL",
    "transformers",
    "pandas",
)


@pytest.fixture
def vitp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the program's entry point in this process: (exit code, stdout, stderr)."""

    def vitp(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitp", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return vitp


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert re.search(rf"^\W*vitp {command}", result.output, re.MULTILINE), result.output


@pytest.mark.parametrize(
    ("command", "summary"), [pair for panel in commands.COMMANDS.values() for pair in panel.items()]
)
def test_the_table_has_the_first_sentence_of_every_commands_help(command: str, summary: str) -> None:
    assert load_command(command).help.partition("\n\n")[0] == summary


def test_a_module_that_registers_a_command_is_in_the_table() -> None:
    folder = Path(commands.__file__).parent
    found = {
        f.stem.replace("_", "-") for f in folder.glob("*.py") if "def register(app" in f.read_text(encoding="utf-8")
    }
    assert found == set(commands.NAMES)


def test_a_command_imports_no_other_command() -> None:
    program = (
        "import sys\nsys.argv = ['vitp', 'gc', '--help']\nfrom vitp_pipeline.cli.app import app\n"
        "app(standalone_mode=False)\n"
        "print(*sorted(name for name in sys.modules if name.startswith('vitp_pipeline.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "vitp_pipeline.cli.gc" in done.stdout.split()
    assert not {f"vitp_pipeline.cli.{name}" for name in ("evaluate", "status", "demo")} & set(done.stdout.split())


@pytest.mark.parametrize("command", [*COMMANDS, "schema"])
def test_examples_can_be_copied(command: str) -> None:
    """Each is a line of at most 76 columns, and stays one on a terminal of 80."""
    own = load_command(command)
    examples = [line.strip() for line in (own.callback.__doc__ or "").splitlines() if line.strip().startswith("vitp ")]
    assert examples and not [line for line in examples if len(line) > 76 or line.endswith("\\")]
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"}).output
    lines = {line.strip() for line in shown.splitlines()}
    assert not [line for line in examples if line not in lines], shown


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("evaluate r --json", "evaluate r --json=-"),
        ("evaluate r --json -", "evaluate r --json=-"),
        ("evaluate --json --out o r", "evaluate --json=- --out o r"),
        ("evaluate r --json a.json --out o", "evaluate r --json a.json --out o"),
        ("compare a b --json", "compare a b --json=-"),
        ("status run --json", "status run --json"),
        ("status run --json -", "status run --json"),
        ("status --json run", "status --json run"),
    ],
)
def test_json_has_one_meaning_in_all_commands(words: str, meant: str) -> None:
    assert one_json(words.split()) == meant.split()


@pytest.mark.parametrize("command", ["evaluate", "export-results", "predict"])
@pytest.mark.parametrize("alpha", ["half", "0,4", "0.4.1"])
def test_alpha_is_read_alike(command: str, alpha: str, vitp, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    words = {
        "evaluate": ["camvid", "--data-root", str(tmp_path), "--out", "out"],
        "export-results": ["camvid", "--data-root", str(tmp_path), "--out", "out", "--format", "label-png"],
        "predict": [str(tmp_path / "a.png"), "--out", "out"],
    }
    code, _, err = vitp(command, *words[command], "--alpha", alpha)
    assert code == 2 and f"--alpha {alpha}".replace("'", "") in err.replace("'", "")
    assert ("the decimal sign is a point" in err.lower()) == (alpha == "0,4"), err


def test_help_lists_the_stages_in_order() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    at = [result.output.index(f"  vitp {command}") for command in COMMANDS[:4]]
    assert at == sorted(at)


def test_no_arguments_show_the_help(vitp) -> None:
    code, out, err = vitp()
    assert code == 2 and "generate-proposals" in out + err


def test_version_is_the_installed_one(vitp) -> None:
    from importlib.metadata import version

    assert vitp("--version") == (0, f"vitp {version('vitp-pipeline')}\n", "")
    assert "--version" in vitp("--help")[1]


IN = ["--data-root", "nowhere", "--out", "out"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, ["nonsense", "vitp --help"]),
        (["evaluate", "camvid", *IN, "--nonsense"], 2, ["--nonsense", "vitp evaluate --help"]),
        (["evaluate", "camvid", "--out", "out"], 2, ["--data-root", "vitp evaluate --help"]),
        (["evaluate", *IN], 2, ["RECIPE"]),
        (["evaluate", "camvid", "--data-root", "nowhere", "--out", ""], 2, ["--out is empty", "variable"]),
        (["evaluate", "camvid", "--data-root=", "--out", "out"], 2, ["--data-root is empty", "variable"]),
        (["status", ""], 2, ["an argument is empty"]),
        (["generate-proposals", "camvid", *IN, "--limit", "many"], 2, ["--limit", "integer"]),
        (["evaluate", "camvit", *IN], 3, ["camvit", "camvid"]),
        (["evaluate", "absent.toml", *IN], 3, ["absent.toml"]),
        (["evaluate", "camvid", *IN, "--alpha", "1.5"], 2, ["1.5", "[0, 1]"]),
        (["evaluate", "camvid", *IN, "--alpha", "half"], 2, ["half", "0:1:0.1"]),
        (["evaluate", "camvid", *IN, "--shard", "8/8"], 2, ["8/8"]),
        (
            ["train-classifier", "camvid", *IN, "--set", "lr=abc"],
            2,
            ["command line", 'lr = "abc"', "it takes a number"],
        ),
        (["train-classifier", "camvid", *IN, "--set", "flip=1"], 2, ["true or false"]),
        (["train-classifier", "camvid", *IN, "--set", "image_size=9"], 2, ["a list of two whole numbers"]),
        (["train-classifier", "camvid", *IN, "--set", "data=1"], 2, ["a list of words"]),
        (["classify", "camvid", *IN, "--batch-size", "0"], 2, ["batch_size", "outside [1, 4096]"]),
        (["generate-proposals", "camvid", *IN], 3, ["nowhere", "--data-root"]),
        (["train-classifier", "camvid", *IN], 3, ["nowhere"]),
        (["classify", "camvid", *IN], 5, ["out/proposals", "vitp generate-proposals"]),
        (["evaluate", "camvid", *IN], 5, ["out/proposals", "vitp generate-proposals"]),
        (["status", "nowhere"], 3, ["nowhere"]),
        (["check-dataset", "camvid", "--data-root", "nowhere"], 3, ["nowhere", "--data-root"]),
        (["check-dataset", "camvit", "--data-root", "."], 3, ["camvit", "camvid"]),
        (["check-dataset", "camvid", "--data-root", ".", "--out", "x.html"], 2, ["x.html", ".png"]),
        (["check-dataset", "camvid", "--data-root", ".", "--split", "tost"], 2, ["'tost'", "val"]),
        (["prepare", "objects365", "--data-root", "."], 2, ["'objects365'", "cityscapes"]),
        (["prepare", "coco", "--data-root", "nowhere"], 3, ["nowhere", "--data-root"]),
        (["verify", "nowhere"], 3, ["nowhere"]),
        (["gc", "nowhere"], 3, ["nowhere"]),
        (["submit", "camvid", *IN], 2, ["--engine", "vitp submit --help"]),
        (["submit", "camvid", *IN, "--engine", "moab"], 2, ["moab", "slurm"]),
        (["submit", "camvid", *IN, "--engine", "slurm"], 2, ["number of shards", "--shards N"]),
        (["submit", "camvid", *IN, "--engine", "slurm", "--shards", "0"], 2, ["--shards"]),
        (["submit", "camvid", *IN, "--engine", "slurm", "--shards", "4"], 3, ["nowhere", "--data-root"]),
        (["submit", "camvid", *IN, "--engine", "slurm", "-j", "4"], 2, ["--engine local"]),
        (["submit", "camvid", *IN, "--engine", "k8s", "--shards", "4"], 2, ["image"]),
        (["submit", "camvid", *IN, "--engine", "aws", "--profile", "absent.toml"], 3, ["absent.toml", "example"]),
        (["report", "nowhere"], 3, ["nowhere", "--out"]),
        (["report", "."], 5, ["vitp evaluate"]),
        (["compare", "nowhere", "elsewhere"], 3, ["nowhere"]),
    ],
)
def test_bad_input_gives_one_line_and_a_code(
    vitp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = vitp(*arguments)
    assert found == code and out == ""
    assert err.count("\n") == 1 and err.startswith("vitp: ") and "Traceback" not in err
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []  # nothing is begun


def test_every_kind_of_error_has_a_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in (UserError, *UserError.__subclasses__())]
    assert len(set(codes)) == len(codes) >= 9 and 0 not in codes


def test_an_interruption_and_a_bug(vitp, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: BaseException):
        def find_run(*_: object) -> None:
            raise error

        monkeypatch.setattr("vitp_pipeline.runs.status.run_status", find_run)

    raising(KeyboardInterrupt())
    code, _, err = vitp("status", "run")
    assert code == 130 and err.count("\n") == 1 and "to continue" in err
    raising(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):  # shows its traceback
        vitp("status", "run")


def test_a_fresh_process_shows_no_traceback(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vitp_pipeline.cli.main",
        "evaluate",
        "camvit",
        "--data-root",
        "x",
        "--out",
        str(tmp_path / "y"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 3 and done.stdout == "" and done.stderr.count("\n") == 1


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after `code`."""
    program = f"{code}\nimport sys; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['vitp', '--help']\nfrom vitp_pipeline.cli.app import app\napp(standalone_mode=False)"
    )
    assert not imported_by(code) & set(HEAVY)


def test_reading_manifests_runs_and_recipes_needs_no_torch() -> None:
    modules = [
        "errors",
        "cli.main",
        "datasets",
        "artifacts.run",
        "artifacts.parts",
        "config.recipe",
        "execution.sharding",
        "execution.runner",
        "runs.status",
        "runs.verify",
        "runs.gc",
        "cluster.slurm",
        "cluster.templates",
        "cluster.local",
    ]
    code = "\n".join(f"import vitp_pipeline.{m}" for m in modules)
    assert not imported_by(code) & {"torch", "timm", "mmengine", "mmcv", "mmseg", "mmdet", "zarr", "pyarrow", "scipy"}


def test_evaluate_needs_no_generator() -> None:
    """Stages two to four must run where no OpenMMLab package is installed."""
    modules = ("stages.evaluate", "evaluation.summary", "stages.classify", "stages.train_classifier")
    found = imported_by("\n".join(f"import vitp_pipeline.{m}" for m in modules))
    assert not found & {"mmengine", "mmcv", "mmseg", "mmdet", "torch"}


def test_doctor_runs(vitp) -> None:
    code, out, _ = vitp("doctor")
    assert code == 0 and "torch" in out and "mmseg" in out.lower()


@pytest.mark.parametrize("command", ["evaluate", "submit", "predict"])
def test_a_decimal_comma_is_recognized(vitp, tmp_path: Path, command: str) -> None:
    words = {"evaluate": ("demo",), "submit": ("demo", "--engine", "local"), "predict": ("a.jpg", "--recipe", "demo")}
    code, out, err = vitp(
        command, *words[command], "--data-root", ".", "--out", str(tmp_path / "run"), "--alpha", "0,4"
    )
    assert code == 2 and not out and "decimal sign is a point" in err and "0.4" in err
    assert not (tmp_path / "run").exists()
