"""`profusion doctor`: what it finds, how it ends, and what it never says."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from profusion_cli import main_memory
from profusion_cli.doctor import machine, report, trial
from profusion_cli.doctor.machine import OPTIONAL, REQUIRED
from profusion_cli.doctor.presets import stock
from profusion_cli.doctor.report import lines_of, private
from profusion_cli.errors import DeviceError, InputError, UnavailableError
from profusion_cli.faceworld.judges import Judges
from profusion_cli.presets import preset_folder, shipped_presets
from profusion_cli.runtime.needs import base_needs, provide
from tests.conftest import run
from tests.hub_server import PIECE
from tests.test_downloads import some_model

SECRETS = ("annabel", "hf_ofAnnabel", "proxy.of.annabel", "s3cret", "/homes", "acme")
WELL = {"identity": 0.8, "others": 0.2, "seconds": 1.0}


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One whole run, as a user whose environment has secrets."""
    from huggingface_hub import constants

    home = tmp_path_factory.mktemp("homes") / "Annabel"
    place = home / "acme"
    place.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **{"HOME": home, "USERPROFILE": home, "USER": "annabel", "LOGNAME": "annabel", "TMPDIR": place},
            **{"HF_TOKEN": "hf_ofAnnabel", "HTTPS_PROXY": "http://annabel:s3cret@proxy.of.annabel"},
        }.items():
            patch.setenv(name, str(value))
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.chdir(place)
        return run("doctor", "--json", "--dtype", "float32")


def test_it_draws_and_is_well(examined: Result) -> None:
    assert examined.exit_code == 0, examined.stdout + examined.stderr
    record = json.loads(examined.stdout)
    assert record["troubles"] == []
    seen = record["face_world"]
    assert seen["identity"] > 0.7 and seen["identity"] - seen["others"] > 0.4
    assert record["devices"][0]["name"] == "cpu" and record["devices"][0]["free"] > 0
    assert record["chosen"]["dtype for training"] == "float32"
    assert len(record["disks"]) == 3 and all(one["free"] > 0 for one in record["disks"])
    assert {one["name"] for one in record["presets"]} == set(shipped_presets())
    by_name = {one["name"]: one for one in record["presets"]}
    assert not by_name["faceworld"]["missing"] and by_name["faceworld"]["here"] > 10_000_000
    assert "vision tower" in by_name["sd2"]["missing"]["laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]
    assert by_name["sd2"]["missing_bytes"] is None
    text = "\n".join(lines_of(record))
    assert "preset faceworld: complete" in text and "missing, of unknown size" in text
    assert text.endswith("profusion is usable here.")
    assert "takes some seconds" in examined.stderr


def test_it_tells_nothing_private(examined: Result) -> None:
    text = "\n".join(lines_of(json.loads(examined.stdout)))
    for secret in SECRETS:
        for said in (examined.stdout, text, examined.stderr):
            assert secret.lower() not in said.lower(), secret
    assert "HF_TOKEN" in text and "~/hub" in text


def test_what_is_private_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "al"
    home.mkdir()
    for name, value in {"HOME": home, "USERPROFILE": home, "USER": "al", "LOGNAME": "al", "USERNAME": "al"}.items():
        monkeypatch.setenv(name, str(value))
    said = {"here": [f"'{home}/x' and {home}.", f"{home}ice/x", "/scratch/al_1/b", "also"]}
    assert private(said)["here"][0] == "'~/x' and ~."
    assert private(said)["here"][2:] == ["/scratch/<user>_1/b", "also"]
    assert not private(said)["here"][1].startswith("~ice")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DeviceError("It draws nobody.", "Take another."), 6, "It draws nobody. Take another."),
        (UnavailableError("No weights.", "Fetch them."), 8, "No weights."),
        (InputError("No photo.", ""), 5, "No photo."),
        (KeyError("x"), 1, "KeyError"),
        (MemoryError(), 6, "out of memory"),
    ],
)
def test_what_keeps_it_from_drawing_is_told(monkeypatch, error, code, said) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(report, "draw_trial", fails)
    result = run("doctor")
    assert result.exit_code == code, result.stdout
    assert said in result.stdout and f"TROUBLE ({code})" in result.stdout and "usable" not in result.stdout
    assert "preset faceworld: complete" in result.stdout


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing is drawn."""
    monkeypatch.setattr(report, "draw_trial", lambda *_: WELL)
    return monkeypatch


def test_a_library_that_is_missing_or_does_not_load(quick) -> None:
    load, version = machine.import_module, machine.version_of

    def broken(name: str) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return load(name)

    quick.setattr(machine, "import_module", broken)
    result = run("doctor")
    assert result.exit_code == 8 and "torchvision::nms" in result.stdout and "torch " in result.stdout
    quick.setattr(machine, "import_module", load)
    quick.setattr(machine, "version_of", lambda name: None if name == "diffusers" else version(name))
    result = run("doctor")
    assert result.exit_code == 8 and "'diffusers' is not installed" in result.stdout


def test_a_full_disk_and_a_wrong_preset(quick) -> None:
    quick.setattr("profusion_cli.runtime.downloads.free_space", lambda folder: 1000)
    result = run("doctor")
    assert result.exit_code == 9 and "1.0 kB free" in result.stdout and "HF_HOME" in result.stdout
    quick.undo()
    quick.setattr(report, "draw_trial", lambda *_: WELL)
    quick.setenv("PROFUSION_PRESET", "faceword")
    result = run("doctor")
    assert result.exit_code == 3 and "Did you mean 'faceworld'?" in result.stdout


def test_a_default_preset_of_ones_own_is_looked_at(quick, tmp_path, base_folder) -> None:
    text = (preset_folder() / "tiny-random.yaml").read_text(encoding="utf-8")
    text = re.sub(r"id: tiny-random\n  random: .*", f"id: {base_folder}", text)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    quick.setenv("PROFUSION_PRESET", str(tmp_path / "mine.yaml"))
    result = run("doctor")
    assert result.exit_code == 0, result.stdout
    assert "preset the one that PROFUSION_PRESET names (default): complete" in result.stdout
    assert "mine.yaml" not in result.stdout


def test_a_default_preset_that_points_nowhere(quick, tmp_path) -> None:
    text = (
        (preset_folder() / "faceworld.yaml").read_text(encoding="utf-8").replace("shipped:faceworld\n", "./nowhere\n")
    )
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    quick.setenv("PROFUSION_PRESET", str(tmp_path / "mine.yaml"))
    result = run("doctor")
    assert result.exit_code == 0, result.stdout
    assert "scheduler, vision tower of a folder" in result.stdout and "nowhere" not in result.stdout


def test_a_container_has_the_memory_that_it_may_use(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(main_memory, "CONTAINER", tmp_path)
    whole = main_memory.main_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert main_memory.main_memory()["total"] == whole["total"]
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\nfile 500000\n")
    assert main_memory.main_memory() == {"free": 600_000, "total": 1_000_000}


def test_noise_is_not_taken_for_a_person() -> None:
    folder = preset_folder() / "faceworld"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    paths = sorted((folder / "faces").glob("*.png"))
    pictures = [Image.fromarray(noise), *(Image.open(path) for path in paths)]
    seen, *known = Judges(folder / "judges").embeddings(pictures)
    likeness = {path.stem: float(seen @ one) for path, one in zip(paths, known, strict=True)}
    with pytest.raises(DeviceError, match="draws nobody"):
        trial.judged(likeness.pop(trial.PERSON), max(likeness.values()), 1.0)
    with pytest.raises(DeviceError, match="draws nobody"):
        trial.judged(float("nan"), 0.0, 1.0)


def test_what_of_a_preset_is_here(hub) -> None:
    config = some_model()
    before = stock(config)
    assert (before["here"], before["kept_bytes"], before["missing_bytes"]) == (0, 0, None)
    assert list(before["missing"]) == ["some/model"] and hub.asked == []
    hub.cut_after = 2 * PIECE
    with pytest.raises(UnavailableError):
        provide(base_needs(config))
    assert stock(config)["kept_bytes"] == 2 * PIECE
    hub.cut_after, hub.down = None, False
    provide(base_needs(config))
    assert stock(config)["missing"] == {} and stock(config)["kept_bytes"] == 0


def test_it_knows_what_profusion_is_installed_with() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(listed: list[str]) -> set[str]:
        return {re.split(r"[\[<>=]", one)[0] for one in listed}

    assert set(REQUIRED) == names(project["dependencies"])
    extras = project["optional-dependencies"]
    assert set(OPTIONAL) >= names(extras["evaluation"]) | names(extras["shards"])
    assert set(extras["test"]) >= set(extras["shards"]), "no test of shards is skipped"
