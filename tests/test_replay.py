"""`profusion inspect --replay`: the command that draws a picture again, which is run here."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from profusion_cli.images import encode_png, read_record
from tests.conftest import draw_photo, ok, run
from tests.test_previews import DRAWN, QUICK

QUICKLY = ("--set", "sample.steps=10", "--speed", "fast", "--set", "plans.fast.steps=3")
SINGLE = (
    "--gamma",
    0.3,
    "--subject-guidance",
    4,
    "--negative-prompt",
    "blue, 'red'",
    "--seed",
    5,
    "--class-word",
    "a cat",
)
CASES = {
    "a picture": ("sample", ["me"], "S* at sea", (*SINGLE, "--sampler", "fusion-only"), "x.png"),
    "by a plan": ("sample", ["me"], "S* at sea", (*QUICKLY, "--no-mark"), "x.png"),
    "by a concept": (
        *("sample", ["me"], "S* at sea"),
        ("--steps", 2, "--subject-prompt", "concept", "--set", "concept_prompt=S* at noon"),
        "x.png",
    ),
    "of two": ("sample", ["me", "you"], "S1* by S2*", ("--steps", 2, "--weights", "0.7,0.3"), "x.png"),
    "a way": ("interpolate", ["me", "you"], "S* at sea", ("--steps", 2, "--frames", 3), "x.gif"),
    "a strip": ("interpolate", ["me", "you"], "S* at sea", ("--steps", 2, "--frames", 2), "x.png"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_command_draws_the_same_bytes(case, subject, other_subject, tmp_path, monkeypatch):
    command, names, prompt, options, target = CASES[case]
    monkeypatch.chdir(subject.parent)
    sources = [{"me": subject.name, "you": other_subject.name}[name] for name in names]
    place = tmp_path / target
    ok(command, *sources, prompt, *options, "-o", place)
    _draws_again(place)


def _draws_again(place: Path) -> None:
    before = place.read_bytes()
    program, *arguments = shlex.split(ok("inspect", place, "--replay").stdout)
    assert program == "profusion"
    place.unlink()
    ok(*arguments)
    assert place.read_bytes() == before


def test_a_sheet_is_drawn_again_with_its_pictures(subject, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / subject.name).write_bytes(subject.read_bytes())
    ok("sample", subject.name, "S* at sea", "S* in style", "-n", 2, "--steps", 2, "-o", "a", "--sheet", "sheet.png")
    _draws_again(tmp_path / "sheet.png")


def test_a_picture_of_each_photo_is_drawn_again(work, tmp_path, monkeypatch):
    """By the photo that it saw."""
    photos = [draw_photo(work / f"seen-{colour}.png", colour) for colour in ("tan", "olive")]
    ok("finetune", *photos, "--preset", "tiny-random", "--steps", 1, "--lr", "1e-3", "-o", tmp_path / "two.pfz")
    monkeypatch.chdir(tmp_path)
    ok("sample", "two.pfz", "S* at sea", "--steps", 2, "-n", 2, "--references", "each", "-o", "p", "--sheet", "s.png")
    (second,) = (tmp_path / "p").glob("*-1.png")
    before = np.asarray(Image.open(second)).astype(int)
    _, *arguments = shlex.split(ok("inspect", second, "--replay").stdout)
    second.unlink()
    ok(*arguments)
    assert abs(np.asarray(Image.open(second)).astype(int) - before).max() <= 1  # alone, not in a batch
    shutil.rmtree(tmp_path / "p")
    _draws_again(tmp_path / "s.png")


def test_a_sheet_of_some_pictures_has_no_such_command(subject, tmp_path, monkeypatch):
    """The best ones alone, or lines with settings of their own."""
    (tmp_path / "p.txt").write_text('{"prompt": "S* at sea", "gamma": 0.1}\nS* in style')
    ok(
        "sample",
        subject,
        "--prompts",
        tmp_path / "p.txt",
        "--steps",
        2,
        "-o",
        tmp_path / "p",
        "--sheet",
        tmp_path / "s.png",
    )
    result = run("inspect", tmp_path / "s.png", "--replay")
    assert result.exit_code == 5 and "not all of those of a command" in result.stderr


def test_a_picture_slips_no_option_in(subject, tmp_path):
    """A record may have been written by anyone."""
    ok("sample", subject, "S* at sea", "--steps", 2, "-o", tmp_path / "x.png")
    parameters, record = read_record((tmp_path / "x.png").read_bytes(), "x.png")
    edits = [{"prompt": "--trust-base"}, {"subjects": [{**record["subjects"][0], "name": "--force"}]}]
    edits += [{"sample": {**record["sample"], "x": 1}}, {"sample": None}, {"pictures": []}, {"start": 3}]
    edits += [{"start": {"name": "x.png"}}, {"seed": "1; ls"}, {"subjects": 3}, {"weights": [[]]}]
    for edit in edits:
        (tmp_path / "y.png").write_bytes(encode_png(Image.new("RGB", (64, 64)), parameters, {**record, **edit}))
        assert run("inspect", tmp_path / "y.png", "--replay").exit_code == 5
    edited = {**record, "class_word": "--trust-base", "placeholder": "$(touch x)"}
    (tmp_path / "y.png").write_bytes(encode_png(Image.new("RGB", (64, 64)), parameters, edited))
    arguments = shlex.split(ok("inspect", tmp_path / "y.png", "--replay").stdout)
    assert "--class-word=--trust-base" in arguments and "--placeholder=$(touch x)" in arguments


def test_other_pictures_have_no_such_command(photo, tmp_path):
    ok("finetune", photo, *QUICK, *DRAWN, "--preview-every", 3, "--pictures", tmp_path / "p", "-o", tmp_path / "me.pfz")
    for file in (photo, tmp_path / "me.preview.png", tmp_path / "me.pfz"):
        result = run("inspect", file, "--replay")
        assert result.exit_code == 5 and "again" in result.stderr
    assert run("inspect", photo, "--replay", "--json").exit_code == 2
