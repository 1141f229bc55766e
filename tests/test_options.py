"""Keys of the configuration and the options made from them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from profusion_cli import options
from profusion_cli.config import Config, build_config
from profusion_cli.errors import ConfigError, UsageError
from profusion_cli.keys import all_keys
from profusion_cli.mappings import flat, nested
from profusion_cli.presets import read_preset, shipped_presets
from tests.conftest import ok


def test_every_key_is_listed_with_all_there_is_to_say():
    listed = {entry["key"]: entry for entry in json.loads(ok("presets", "--keys", "--json").stdout)["keys"]}
    printed = ok("presets", "--keys").stdout
    for name, key in all_keys().items():
        entry = listed.pop(name)
        assert entry["help"].endswith(".") and entry["type"], name
        assert f"\n{name}: " in f"\n{printed}" and f"    {entry['help']}\n" in printed
        assert key.type in printed
    assert not listed
    assert len(all_keys()) > 100


def test_listed_keys_are_those_that_presets_set():
    for name in shipped_presets():
        values = flat({key: value for key, value in read_preset(name).items() if value is not None})
        given = {key for key, value in values.items() if value is not None}
        assert given <= set(all_keys()), name
    assert {key for key in all_keys() if key.count(".") == 0} <= set(Config.__dataclass_fields__)


@pytest.mark.parametrize("name", [name for name, key in all_keys().items() if key.range])
def test_a_listed_range_is_the_one_that_is_checked(name):
    key = all_keys()[name]
    metadata = key.field.metadata

    def built(value: float) -> None:
        whole = {"preset": "x", "base": {"id": "y"}}
        build_config(whole | nested({name: [value] if key.is_list else value, **({"base.id": "y"})}))

    low, high = metadata["low"], metadata["high"]
    assert key.range.startswith(f"{low:g}")
    with pytest.raises(ConfigError, match=r"out of range"):
        built(low - 1)
    if high is not None:
        with pytest.raises(ConfigError, match="out of range"):
            built(high + 1)
    if not key.is_list:
        built(high if name == "augment.scale_max" else low)


def application(*names: str, without: tuple[str, ...] = ()) -> tuple[typer.Typer, list[dict[str, Any]]]:
    app, calls = typer.Typer(), []

    @app.command()
    @options.takes(*names, without=without)
    def command(
        word: Annotated[str, typer.Argument()], preset: options.Preset = None, *, flags: dict[str, Any]
    ) -> None:
        """Say a word."""
        calls.append({"word": word, "preset": preset, **flags})

    return app, calls


def test_options_set_keys_and_what_is_not_given_sets_none():
    app, calls = application("finetune", "augment.inpaint", "sample.subject_guidance", "seed")
    arguments = ["hi", "--steps", "0", "--lr", "1e-4", "--no-inpaint", "--subject-guidance", "5,2", "--preset", "p"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert CliRunner().invoke(app, ["ho"], catch_exceptions=False).exit_code == 0
    assert calls == [
        {
            "word": "hi",
            "preset": "p",
            "finetune.steps": 0,
            "finetune.learning_rate": 1e-4,
            "augment.inpaint": False,
            "sample.subject_guidance": [5.0, 2.0],
        },
        {"word": "ho", "preset": None},
    ]


def test_a_section_gives_its_keys_with_a_flag_and_no_others():
    app, _ = application("pretrain", without=("pretrain.sample_every",))
    names = {name for parameter in typer.main.get_command(app).params for name in parameter.opts}
    wanted = {key.flag for key in all_keys().values() if key.name.startswith("pretrain.") and key.flag}
    assert wanted - names == {"--sample-every"}
    assert "--weight-decay" not in names


def test_a_list_of_no_numbers_is_told():
    app, _ = application("sample.weights")
    result = CliRunner().invoke(app, ["hi", "--weights", "1,x"])
    assert isinstance(result.exception, UsageError) and "--weights '1,x'" in result.exception.message


def test_a_key_that_is_none_is_the_callers_mistake():
    with pytest.raises(ValueError, match=r"pretrain.lr"):
        options.takes("pretrain.lr")


def test_panels_and_names_are_those_of_the_field():
    app, _ = application("sample", "device")
    found = {parameter.opts[-1]: parameter for parameter in typer.main.get_command(app).params}
    assert found["--gamma"].rich_help_panel == "Fusion Sampling"
    assert found["--device"].rich_help_panel == "Configuration"
    assert found["--num-images"].opts == ["-n", "--num-images"]
    assert found["--gamma"].help == all_keys()["sample.gamma"].help


def test_help_tells_defaults_and_where_they_come_from(monkeypatch, tmp_path):
    def told(command: str) -> str:
        return " ".join(ok(command, "--help", terminal_width=200, env={"COLUMNS": "200"}).stdout.split())

    assert "Default from the preset sd2: 50." in told("sample")
    assert "Default from the preset sd2: 80000." in told("pretrain")
    assert "Default: sd2." in told("finetune") and "Default: auto." in told("finetune")
    assert told("finetune") == told("finetune")
    monkeypatch.setenv("PROFUSION_PRESET", "faceworld")
    assert "Default from the preset faceworld: 4.0." in told("sample")
    monkeypatch.setenv("PROFUSION_PRESET", str(tmp_path / "nowhere.yaml"))
    assert "Default from the preset." in told("sample")


def test_every_option_of_a_preset_tells_its_default():
    values = flat(read_preset("sd2"))
    for key in all_keys().values():
        if key.flags and not key.is_switch and values.get(key.name) not in (None, ""):
            assert options.default_words(key, "sd2", values).startswith(" Default from the preset sd2: "), key.name
