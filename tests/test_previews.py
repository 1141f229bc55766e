"""`finetune --preview-every`: pictures of a subject while it is tuned, which change nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_cli import draw, load_config, make_subject
from profusion_cli.commands.drawing import PreviewSheet
from profusion_cli.errors import UsageError
from profusion_cli.images import read_record
from profusion_cli.previews import Previews
from profusion_cli.runtime.fitting import Tensors
from profusion_cli.runtime.previewing import evaluating
from tests.conftest import draw_photo, ok, run
from tests.test_training import make_base

PROMPTS = ("S* in style", "S* at sea")
QUICK = ("--preset", "tiny-random", "--no-augment", "--steps", 3, "--lr", "1e-3", "--batch-size", 2)
SAMPLED = ("--set", "sample.steps=10", "--set", "sample.speed=fast", "--set", "plans.fast.steps=2")
DRAWN = ("--draw", PROMPTS[0], "--draw", PROMPTS[1], *SAMPLED)


def written(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by their names."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        ("--train", "attention"),
        ("--train", "lora", "--dtype", "bfloat16", "--set", "finetune.gradient_checkpointing=true"),
        ("--method", "textual-inversion"),
        ("--method", "dreambooth", "--set", "finetune.prior_pictures=1"),
    ],
)
def test_previews_change_nothing(photo, tmp_path, options):
    """Neither the losses, nor the bundle, nor the pictures after it."""
    told = {}
    for name, preview in (("with", ("--preview-every", 2)), ("without", ())):
        places = ("-o", tmp_path / name / "me.pfz", "--pictures", tmp_path / name)
        result = ok("finetune", photo, *QUICK, *options, *DRAWN, *preview, *places, "--json")
        told[name] = json.loads(result.stdout)
    sheet = tmp_path / "with" / "me.preview.png"
    assert told["with"]["preview"] == str(sheet) and "preview" not in told["without"]
    for loss in ("first_loss", "last_loss"):
        assert told["with"][loss] == told["without"][loss]
    made = written(tmp_path / "with")
    _, record = read_record(made.pop(sheet.name), sheet.name)
    assert record["previews"] == [0, 2, 3]
    assert made == written(tmp_path / "without") and len(made) == 3


def test_texts_of_previews_are_not_those_of_pictures(base_folder):
    """Whose precision torch does not choose."""
    text, fresh = make_base(base_folder).text, make_base(base_folder).text
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        preview = text.encode("a person at sea")
    assert text.encode("a person at sea").equal(fresh.encode("a person at sea"))
    assert not preview.float().equal(fresh.encode("a person at sea"))


def test_networks_train_on_as_they_did():
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1)).train()
    network[1].eval()
    with pytest.raises(KeyboardInterrupt), evaluating(network):
        assert not any(module.training for module in network.modules())
        raise KeyboardInterrupt
    assert [module.training for module in network.modules()] == [True, True, False]


@pytest.mark.parametrize("train", ["attention", "lora"])
def test_previews_are_what_the_subject_of_that_moment_draws(photo, train):
    """To a grey level: from the same noise, by the plan of the configuration."""
    sampling = {"sample.steps": 10, "sample.speed": "fast", "plans.fast.steps": 2}
    tuning = {"steps": 2, "train": train, "learning_rate": 1e-2, "batch_size": 2, "save_dtype": "float32"}
    settings = {**sampling, **{f"finetune.{name}": value for name, value in tuning.items()}, "dtype": "float32"}
    seen: dict[int, list[Image.Image]] = {}

    def made(**options: Any) -> Any:
        config = load_config("tiny-random", {**settings, "finetune.steps": options.pop("steps")})
        return config, make_subject([Image.open(photo)], config, augment=False, **options)

    _, _ = made(steps=2, previews=Previews(PROMPTS, 1, lambda done, pictures: seen.update({done: list(pictures)})))
    assert list(seen) == [0, 1, 2]
    for steps, pictures in seen.items():
        config, subject = made(steps=steps)
        for picture, preview in zip(draw([subject], PROMPTS, config), pictures, strict=True):
            difference = np.asarray(picture.image).astype(int) - np.asarray(preview).astype(int)
            assert abs(difference).max() <= 1
    first, last = (np.asarray(seen[step][0]).astype(int) for step in (0, 2))
    assert abs(first - last).max() > 1
    with pytest.raises(UsageError, match="no steps"):
        made(steps=0, previews=Previews(PROMPTS, 1, lambda *_: None))


def test_the_sheet_grows(photo, tmp_path, monkeypatch):
    """It is whole each time, and says how it was made; what was there is kept without --force."""
    sheet, add, sizes = tmp_path / "me.preview.png", PreviewSheet.add, []

    def added(self: PreviewSheet, done: int, pictures: Any) -> None:
        add(self, done, pictures)
        assert {path.name for path in tmp_path.iterdir()} <= {sheet.name, "me.pfz", "p"}
        with Image.open(sheet) as whole:
            sizes.append(whole.size)

    monkeypatch.setattr(PreviewSheet, "add", added)
    command = ("finetune", photo, *QUICK, *DRAWN, "--pictures", tmp_path / "p", "-o", tmp_path / "me.pfz")
    sheet.write_bytes(b"mine")
    assert run(*command, "--preview-every", 1).exit_code == 9
    assert sheet.read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
    result = ok(*command, "--preview-every", 1, "--force")
    assert result.stdout.splitlines()[:2] == [str(tmp_path / "me.pfz"), str(sheet)]
    assert str(sheet) in result.stderr
    assert len(sizes) == 4 and sizes == sorted(set(sizes)) and len({height for _, height in sizes}) == 1
    parameters, record = read_record(sheet.read_bytes(), sheet.name)
    assert PROMPTS[0] in parameters and record["plan"]["steps"] == 2
    assert [one["prompt"] for one in record["pictures"]] == list(PROMPTS)
    assert photo.name in ok("inspect", sheet).stdout


def test_each_has_a_sheet(tmp_path):
    """One that a run left over that was broken off is made anew, and what is done is left alone."""
    photos = [draw_photo(tmp_path / f"{name}.png", colour) for name, colour in (("ann", "tan"), ("bob", "olive"))]
    places = ("-o", tmp_path / "s", "--pictures", tmp_path / "p")
    command = ("finetune", *photos, *QUICK, *DRAWN, "--preview-every", 3, "--each", *places)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "ann.preview.png").write_bytes(b"left over")
    told = json.loads(ok(*command, "--json").stdout)
    sheets = [tmp_path / "s" / f"{photo.stem}.preview.png" for photo in photos]
    assert [one["preview"] for one in told["made"]] == list(map(str, sheets))
    for sheet, photo in zip(sheets, photos, strict=True):
        record = read_record(sheet.read_bytes(), sheet.name)[1]
        assert [item["name"] for item in record["inputs"]] == [photo.name]
    before = written(tmp_path / "s")
    assert len(json.loads(ok(*command, "--json").stdout)["skipped"]) == 2
    assert written(tmp_path / "s") == before


def test_an_interrupted_tuning_leaves_a_whole_sheet(photo, tmp_path, monkeypatch):
    """And no bundle: it shows how far it went."""
    moved, to = [], Tensors.to

    def interrupted(self: Tensors, device: Any) -> Any:
        moved.append(device)
        if len(moved) == 3:
            raise KeyboardInterrupt
        return to(self, device)

    monkeypatch.setattr(Tensors, "to", interrupted)
    result = run("finetune", photo, *QUICK, *DRAWN, "--preview-every", 1, "-o", tmp_path / "me.pfz")
    assert result.exit_code == 130 and "2 of 3 steps" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["me.preview.png"]
    assert read_record((tmp_path / "me.preview.png").read_bytes(), "me")[1]["previews"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--preview-every", 5), 2, "--draw"),
        (("--preview-every", 5, "--draw", "S*", "--steps", 0), 2, "--steps 0"),
        (("--preview-every", 0, "--draw", "S*"), 2, "--preview-every"),
        (("--compile", "--steps", 0), 2, "--compile has no effect"),
        (("--preview-every", 5, "--draw", "no placeholder"), 5, "placeholder"),
        (("--preview-every", 5, "--draw", "S*", "--set", "sample.reference=2"), 3, "sample.reference"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_the_work(photo, tmp_path, options, code, word):
    result = run("finetune", photo, "--preset", "tiny-random", *options, "-o", tmp_path / "me.pfz")
    assert result.exit_code == code and word in result.stderr
    assert not list(tmp_path.iterdir())


def test_no_input_is_overwritten_by_a_sheet(tmp_path):
    photo = draw_photo(tmp_path / "me.preview.png")
    result = run("finetune", photo, *QUICK, *DRAWN, "--preview-every", 1, "-o", tmp_path / "me.pfz", "--force")
    assert result.exit_code == 2 and "is an input" in result.stderr
