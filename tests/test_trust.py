"""What a stranger's bundle may decide, and what it takes to follow it elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from profusion_cli import draw, load_config
from profusion_cli.bundle import make_bundle, read_bundle
from profusion_cli.errors import BundleError, UnavailableError
from profusion_cli.jobs.remembered import path_of
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.hub import Source
from tests.conftest import ok, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_consents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.get_app_dir", lambda name: str(tmp_path / "settings" / name))


def edited(subject: Path, target: Path, **config: object) -> Path:
    """The bundle with other values in sections of its configuration, by a maker who keeps all checksums right."""
    bundle = read_bundle(subject.read_bytes(), "me.pfz")
    manifest = json.loads(json.dumps(bundle.manifest))
    for section, values in config.items():
        manifest["config"][section] |= values
    make_bundle(manifest, {name: bundle.read(name) for name in bundle.files}).save(str(target), True)
    return target


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(BaseModel, "__enter__", refuse)
    monkeypatch.setattr("profusion_cli.runtime.backbone.find_files", refuse)


EVIL = {"id": "attacker/evil-repo", "random": None, "revision": "main"}


@pytest.mark.parametrize(
    ("base", "told"),
    [
        (EVIL, "the Hub's 'attacker/evil-repo', revision main"),
        ({"id": "/srv/secret", "random": None}, "'/srv/secret'"),
        ({"id": "shipped:faceworld", "random": None, "mirror": {"id": "attacker/evil-repo"}}, "'attacker/evil-repo'"),
        ({"random": {"size": "sd2", "seed": 0}}, "random weights (sd2, seed 0)"),
        ({"random": None, "vision": {"id": "attacker/eyes", "revision": None, "subfolder": ""}}, "'attacker/eyes'"),
        ({"random": None, "id": "shipped:faceworld", "unet": {"id": None, "subfolder": "../../etc"}}, "faceworld"),
    ],
)
def test_a_bundle_alone_names_no_place(subject, tmp_path, nothing_loaded, base, told):
    bundle = edited(subject, tmp_path / "evil.pfz", base=base)
    for command in (["sample", bundle, "S*"], ["interpolate", bundle, bundle, "S*"]):
        result = run(*command, "-o", tmp_path / "x.png")
        assert result.exit_code == 4, result.stderr
        assert told in result.stderr and "--trust-base" in result.stderr
    assert not (tmp_path / "x.png").exists()
    with pytest.raises(BundleError, match="have not named"):
        next(draw([read_bundle(bundle.read_bytes(), "evil.pfz")], ["S*"]))


def test_neither_does_one_of_views_for_finetune(photo, tmp_path):
    ok("augment", photo, "--preset", "tiny-random", "--views", 1, "--no-inpaint", "-o", tmp_path / "v.pfz")
    for section, values in (("base", EVIL), ("promptnet", {"weights": "/srv/secret.pfz"})):
        views = edited(tmp_path / "v.pfz", tmp_path / "evil.pfz", **{section: values})
        result = run("finetune", views, "--steps", 0, "--force", "-o", tmp_path / "me.pfz")
        assert result.exit_code == 4 and "--trust-base" in result.stderr
        ok("finetune", views, "--preset", "tiny-random", "--steps", 0, "-o", tmp_path / "me.pfz", "--force")


def test_places_that_the_user_names_are_loaded(subject, base_folder, tmp_path, monkeypatch):
    evil = edited(subject, tmp_path / "evil.pfz", base=EVIL)
    draws = ["sample", evil, "S*", "--steps", 1, "--force", "-o", tmp_path / "x.png"]
    assert run(*draws).exit_code == 4
    ok(*draws, "--base-model", base_folder)
    assert run(*draws).exit_code == 4, "for that run alone"
    preset = yaml.safe_load((ROOT / "presets" / "tiny-random.yaml").read_text())
    preset["base"] |= {**EVIL, "random": None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    asked = []

    def find(source: Source, *_: object) -> None:
        asked.append(source.id)
        raise UnavailableError("not here", "")

    monkeypatch.setattr("profusion_cli.runtime.backbone.find_files", find)
    for more, variable in ((["--preset", tmp_path / "mine.yaml"], ""), ([], str(tmp_path / "mine.yaml"))):
        monkeypatch.setenv("PROFUSION_PRESET", variable)
        asked.clear()
        assert run(*draws, *more).exit_code == UnavailableError.exit_code
        assert asked == ["attacker/evil-repo"]


def test_consent_is_asked_once_and_for_these_places_alone(base_folder, subject, tmp_path):
    mine = shutil.copytree(base_folder, tmp_path / "base")
    stranger = edited(subject, tmp_path / "s.pfz", base={"id": str(mine), "random": None})
    draws = ["sample", stranger, "S*", "--steps", 1, "--force", "-o", tmp_path / "x.png"]
    assert run(*draws).exit_code == 4
    ok(*draws, "--trust-base")
    ok(*draws)
    other = edited(subject, tmp_path / "o.pfz", base={"id": str(base_folder), "random": None})
    assert run("sample", other, "S*", "-o", tmp_path / "y.png").exit_code == 4
    path_of("consents").write_text("consents: [")
    result = run(*draws)
    assert result.exit_code == 3 and str(path_of("consents")) in result.stderr


def test_ones_own_bundles_need_no_word(photo, base_folder, tmp_path):
    common = ("--no-augment", "--preset", "tiny-random", "--steps", 0)
    ok("finetune", photo, *common, "--base-model", base_folder, "-o", tmp_path / "me.pfz")
    ok("sample", tmp_path / "me.pfz", "S*", "--steps", 1, "-o", tmp_path / "x.png")
    ok("finetune", photo, *common, "--set", "base.random.seed=3", "-o", tmp_path / "three.pfz")
    ok("sample", tmp_path / "three.pfz", "S*", "--steps", 1, "-o", tmp_path / "y.png")
    before = path_of("consents").read_text()
    ok("finetune", photo, *common, "-o", tmp_path / "shipped.pfz")
    assert path_of("consents").read_text() == before, "a shipped preset's places are known"
    path_of("consents").unlink()
    assert run("sample", tmp_path / "me.pfz", "S*", "-o", tmp_path / "z.png").exit_code == 4


def test_where_no_consent_can_be_kept_the_work_is_done_all_the_same(photo, base_folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("typer.get_app_dir", lambda name: str(tmp_path / "file" / name))
    common = ("--no-augment", "--preset", "tiny-random", "--steps", 0, "--base-model", base_folder)
    result = ok("finetune", photo, *common, "-o", tmp_path / "me.pfz")
    assert "`--trust-base` will be needed" in result.stderr
    result = run("sample", tmp_path / "me.pfz", "S*", "--trust-base", "-o", tmp_path / "x.png")
    assert result.exit_code == 9


def test_how_much_is_drawn_is_the_users_affair(subject, tmp_path):
    much = {"num_images": 100_000, "batch_size": 4096, "width": 4096, "height": 4096, "gamma": 0.3}
    bundle = edited(subject, tmp_path / "much.pfz", sample=much)
    sample = yaml.safe_load(ok("sample", bundle, "S*", "--dry-run").stdout)["sample"]
    own = load_config("tiny-random").as_dict()["sample"]
    assert sample == {**own, "gamma": 0.3}
    sample = yaml.safe_load(ok("sample", bundle, "S*", "-n", 2, "--width", 192, "--dry-run").stdout)["sample"]
    assert (sample["num_images"], sample["width"], sample["height"]) == (2, 192, None)
    bundle = edited(subject, tmp_path / "large.pfz", base={"resolution": 4096})
    sample = yaml.safe_load(ok("sample", bundle, "S*", "--dry-run").stdout)["sample"]
    assert (sample["width"], sample["height"]) == (128, 128), "the preset's"


def test_trust_base_without_a_bundle_is_refused(photo, tmp_path):
    result = run("finetune", photo, "--preset", "tiny-random", "--trust-base", "-o", tmp_path / "x.pfz")
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "quantization_config", {"quant_method": "bitsandbytes"}),
        ("text_encoder", "auto_map", {"AutoModel": "x--y.Z"}),
    ],
)
def test_a_base_model_brings_no_code(base_folder, photo, tmp_path, part, key, value):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    common = ("--no-augment", "--preset", "tiny-random", "--steps", 0, "--base-model", folder)
    result = run("finetune", photo, *common, "-o", tmp_path / "me.pfz")
    assert result.exit_code == UnavailableError.exit_code and key in result.stderr


def test_a_kernel_that_a_base_model_names_is_not_taken(base_folder, photo, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    for part in ("text_encoder", "vision"):
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "attn_implementation": "attacker/kernel"}))
    common = ("--no-augment", "--preset", "tiny-random", "--steps", 0, "--base-model", folder)
    ok("finetune", photo, *common, "-o", tmp_path / "me.pfz")


def test_a_refusal_comes_before_torch(subject, tmp_path):
    bundle = edited(subject, tmp_path / "evil.pfz", base=EVIL)
    script = (
        "import sys; from profusion_cli.app import app\n"
        f"try: app(['sample', {str(bundle)!r}, 'S*'])\n"
        "except SystemExit as end: sys.exit(0 if end.code == 4 and 'torch' not in sys.modules else 1)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False).returncode == 0
