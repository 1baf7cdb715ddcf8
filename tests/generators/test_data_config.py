"""Configs that are data run nothing: YAML and JSON, in every command that reads a generator's config."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from vitp_pipeline.errors import InputError, UserError
from vitp_pipeline.generators.data_config import read_data_config
from vitp_pipeline.generators.openmmlab.configs import config_sources
from vitp_pipeline.generators.safe_yaml import load_yaml

TAGS = [
    "!!python/object/apply:os.mkdir [was-here]",
    "!!python/object/new:os.mkdir [was-here]",
    "!!python/object/apply:subprocess.check_call [[mkdir, was-here]]",
    "!!python/object:collections.OrderedDict {}",
    "!!python/name:os.mkdir",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!!python/object/apply:eval ['1']",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [was-here]",
    "!own [1]",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp 2001-01-01",
    "2001-01-01",
]
BOMBS = {
    "aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "merges": "a0: &a0 {k0: 1, l0: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], k{n}: 1}}\n" for n in range(1, 12)),
    "circle": "a: &a [*a]",
    "circle of two": "a: &a {b: &b {c: *a}}",
    "deep lists": "a: " + "[" * 100_000,
    "deep mappings": "\n".join(" " * n + "a:" for n in range(500)),
    "many nodes": "a: [" + "1, " * 500_000 + "1]",
    "long": "a: " + "x" * (1 << 23),
    "digits": "a: " + "9" * 100_000,
    "sixties": "a: 1" + ":1" * 100_000,
    "hexadecimal": "a: 0x" + "f" * 100_000,
}
FAULTY = ["a: [", "a: 1\n---\nb: 2", "\x00", "a: *nothing", "%YAML 9.9\n---\na: 1", "? [a]: {[b]: 1}\n: 1", "@"]


@pytest.mark.parametrize("text", [f"model: {tag}" for tag in TAGS] + TAGS)
def test_tags_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"not (plain )?data"):
        load_yaml(text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [*BOMBS.values(), *FAULTY], ids=[*BOMBS, *map(repr, FAULTY)])
def test_what_is_large_or_broken_is_refused_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError) as info:
        load_yaml(text)
    assert time.process_time() - began < 3 and len(str(info.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1\nb: [1.5, -2, true, null, ~, 'text', \"more\", plain words]\nc: {d: {e: []}}",
        "base: &base {type: GN, num_groups: 32}\nnorm: *base\nother: {<<: *base, num_groups: 16}",
        "a: |\n  lines\n  of text\nb: >\n  folded\n",
        "x: 0x1f\ny: 1e3\nz: .inf\n",
        "- 1\n- [2, {a: b}]",
        "just text",
        "key: ! 'not a tag'",
        'a: !!str 5\nb: !!int "6"',
    ],
)
def test_plain_yaml_is_read_as_pyyaml_reads_it(text: str) -> None:
    assert load_yaml(text) == yaml.safe_load(text)


ASKS = [
    {"custom_imports": {"imports": ["evil"]}},
    {"model": {"type": "os.mkdir", "path": "was-here"}},
    {"model": {"type": "mmengine.fileio.load", "file": "evil.pkl"}},
    {"model": {"type": "EncoderDecoder", "backbone": {"type": "subprocess.call"}}},
    {"model": {"type": "EncoderDecoder", "backbone": [{"init_cfg": {"type": "evil.X"}}]}},
    {"test_pipeline": [{"type": "shutil.rmtree"}]},
    {"test_pipeline": [{"type": "{{_base_.kind}}"}]},
    {"model": {"type": "TIMMBackbone", "model_name": "hf-hub:x/y"}},
    {"model": {"type": "TIMMBackbone", "model_name": "local-dir:/tmp"}},
    {"model": {"_scope_": "evil", "type": "X"}},
    {"model": {"type": "GroundingDINO", "language_model": {"type": "mmdet.BertModel", "name": "owner/name"}}},
    {"_base_": "evil.py"},
    {"_base_": ["plain.json", "../evil.py"]},
    {"_base_": "evil::x.py"},
    {"_base_": "mmdet::../../../evil.py"},
    {"_base_": "vitp::evil.py"},
    {"_base_": 3},
    {"_base_": [None]},
]


@pytest.mark.parametrize("content", ASKS, ids=str)
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_data_ask_for_registered_names_and_data_alone(suffix: str, content: dict, tmp_path: Path) -> None:
    text = json.dumps(content) if suffix == ".json" else yaml.safe_dump(content)
    with pytest.raises(ValueError):
        read_data_config(Path(f"a{suffix}"), text)
    (tmp_path / "plain.json").write_text("{}")
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('was-here')\n")
    (tmp_path / f"a{suffix}").write_text(text)
    with pytest.raises(InputError, match=rf"a\{suffix}: config cannot be parsed"):
        config_sources(tmp_path / f"a{suffix}")
    (tmp_path / "above.json").write_text(json.dumps({"_base_": f"a{suffix}"}))
    with pytest.raises(InputError, match=rf"a\{suffix}: config cannot be parsed"):
        config_sources(tmp_path / "above.json")


NO_CONFIG = ["[" * 100_000, '{"a": ' * 500 + "1" + "}" * 500, "[]", "3", '{"a": 1', "NaN", '{"a": "' + "x" * (1 << 23)]


@pytest.mark.parametrize("text", NO_CONFIG, ids=range(len(NO_CONFIG)))
def test_json_that_is_no_config(text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read_data_config(Path("a.json"), text)


def reads_of(config: Path) -> dict:
    """Every command that reads a config before it has weights."""
    import torch

    from vitp_pipeline.diagnostics.model_cost import costs_of
    from vitp_pipeline.generators.openmmlab.adapter import OpenMMLabGenerator
    from vitp_pipeline.generators.openmmlab.convert import import_openmmlab

    weights = config.with_name("w.pth")
    torch.save({"state_dict": {"a": torch.ones(1)}}, weights)
    return {
        "generate-proposals": lambda: OpenMMLabGenerator(config, None),
        "info": lambda: costs_of(config=str(config)),
        "import-checkpoint": lambda: import_openmmlab(weights, config, config.with_name("out.safetensors")),
    }


POLYGLOT = 'custom_imports: {"imports": ["evil"]}\n__import__("os").mkdir("was-here") if True else {}\n'
"""A program; under another name, YAML in part."""
PAYLOADS = {
    "tag.yaml": "model:\n  type: EncoderDecoder\n  x: !!python/object/apply:os.mkdir [was-here]\n",
    "tag.yml": "x: !!python/object/apply:os.mkdir [was-here]\n",
    "type.json": '{"model": {"type": "os.mkdir", "path": "was-here"}}',
    "module.yaml": "model: {type: evil, path: was-here}\n",
    "imports.yaml": "custom_imports: {imports: [evil]}\nmodel: {type: EncoderDecoder}\n",
    "base.yaml": "_base_: tag.yml\nmodel: {type: EncoderDecoder}\n",
    "program.json": '{"_base_": "evil.py", "model": {"type": "EncoderDecoder"}}',
    "inner.json": '{"model": {"type": "EncoderDecoder", "backbone": {"type": "evil"}}}',
    "link.yaml": "",
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_command_runs_a_config_that_is_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, text in PAYLOADS.items():
        (tmp_path / file).write_text(text)
    (tmp_path / "evil.py").write_text(POLYGLOT)
    (tmp_path / "link.yaml").unlink()
    (tmp_path / "link.yaml").symlink_to("evil.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for command, read in reads_of(tmp_path / name).items():
        with pytest.raises(UserError) as info:
            read()
        assert not (tmp_path / "was-here").exists(), command
        assert "\n" not in info.value.message and len(info.value.message) < 600, command


def test_a_good_config_in_yaml_and_json_is_read(tmp_path: Path) -> None:
    """The same network as of the same config in Python; its base is a packaged one."""
    from vitp_pipeline.generators.openmmlab.adapter import empty_model

    pytest.importorskip("mmseg")
    source = Path(__file__).parents[2] / "vitp_pipeline" / "demo" / "generator_config.py"
    from mmengine import Config

    plain = Config.fromfile(source).to_dict()
    names = set()
    for suffix, dump in ((".json", json.dumps), (".yaml", yaml.safe_dump)):
        file = tmp_path / f"plain{suffix}"
        file.write_text(dump(json.loads(json.dumps(plain))))
        assert config_sources(file) == [file]
        model, _ = empty_model(file)
        names.add(tuple(model.state_dict()))
    assert names == {tuple(empty_model(source)[0].state_dict())}
