"""`--each`: the same for every photo or subject by itself, with everything loaded once; and `finetune --draw`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from profusion_cli.images import read_record
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.inpaint import InpaintingModel
from profusion_cli.runtime.keeping import KeptBase
from tests.conftest import draw_photo, ok, run

QUICK = ("--preset", "tiny-random", "--steps", 1, "--lr", "1e-3", "--set", "sample.steps=3")
DRAWN = ("S* in style", "S* at sea")


@pytest.fixture(scope="module")
def photos(work: Path) -> list[Path]:
    folder = work / "photos"
    folder.mkdir()
    return [draw_photo(folder / f"{name}.png", colour) for name, colour in (("ann", "tan"), ("bob", "olive"))]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each part of a model is read."""
    log: Counter = Counter()
    original = BaseModel._load

    def counted(self: BaseModel, name: str, *arguments: Any) -> Any:
        log["inpainting " * isinstance(self, InpaintingModel) + name] += 1
        return original(self, name, *arguments)

    monkeypatch.setattr(BaseModel, "_load", counted)
    return log


@pytest.mark.parametrize("train", ["attention", "lora"])
def test_each_photo_becomes_the_bundle_that_it_becomes_alone(photos, loads, tmp_path, train):
    options = (*QUICK, "--train", train)
    told = json.loads(ok("finetune", *photos, *options, "--each", "-o", tmp_path / "subjects", "--json").stdout)
    assert set(loads.values()) == {1}
    assert [one["input"] for one in told["made"]] == list(map(str, photos))
    for photo in photos:
        ok("finetune", photo, *options, "-o", tmp_path / "alone.pfz", "--force")
        together = tmp_path / "subjects" / f"{photo.stem}.pfz"
        assert together.read_bytes() == (tmp_path / "alone.pfz").read_bytes()


def test_a_photo_that_fails_stops_no_other(photos, tmp_path):
    bad, missing = tmp_path / "bad.png", tmp_path / "missing.png"
    bad.write_bytes(b"no picture")
    arguments = ("finetune", photos[0], bad, missing, photos[1], *QUICK, "--no-augment", "--each", "-o", tmp_path / "s")
    result = run(*arguments, "--json")
    assert result.exit_code == 5
    told = json.loads(result.stdout)
    assert [len(told[name]) for name in ("made", "skipped", "failed")] == [2, 0, 2]
    assert "bad.png" in result.stderr and "2 of 4 failed" in result.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}
    assert {path.name for path in before} == {"ann.pfz", "bob.pfz"}
    draw_photo(bad)
    again = run(*arguments, "--json")
    told = json.loads(again.stdout)
    assert [len(told[name]) for name in ("made", "skipped", "failed")] == [1, 2, 1]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_what_is_wrong_with_all_stops_at_the_first(photos, tmp_path):
    nowhere = ("--base-model", tmp_path / "nowhere")
    result = run("finetune", *photos, *QUICK, *nowhere, "--each", "-o", tmp_path / "s")
    assert result.exit_code == 8
    assert not (tmp_path / "s").exists()


def test_each_subject_is_drawn_as_it_is_alone(subject, other_subject, loads, tmp_path):
    arguments = ("sample", subject, other_subject, *DRAWN, "--steps", 3)
    ok(*arguments, "--each", "-o", tmp_path / "each")
    assert set(loads.values()) == {1}
    for one in (subject, other_subject):
        ok("sample", one, *DRAWN, "--steps", 3, "-o", tmp_path / one.stem)
        names = sorted(path.name for path in (tmp_path / one.stem).iterdir())
        assert names == sorted(path.name for path in (tmp_path / "each" / one.stem).iterdir()) and len(names) == 2
        for name in names:
            assert (tmp_path / "each" / one.stem / name).read_bytes() == (tmp_path / one.stem / name).read_bytes()
    gone = next((tmp_path / "each" / subject.stem).iterdir())
    gone.unlink()
    told = json.loads(ok(*arguments, "--each", "-o", tmp_path / "each", "--json").stdout)
    assert [one["input"] for one in told["made"]] == [str(subject)] and told["skipped"] == [str(other_subject)]
    assert gone.exists()


def test_a_subject_is_drawn_right_after_tuning(photos, loads, tmp_path):
    target, drawn = tmp_path / "me.pfz", [part for text in DRAWN for part in ("--draw", text)]
    ok("finetune", photos[0], *QUICK, *drawn, "--pictures", tmp_path / "now", "-o", target)
    assert set(loads.values()) == {1}
    ok("sample", target, *DRAWN, "-o", tmp_path / "later")
    for path in (tmp_path / "later").iterdir():
        assert (tmp_path / "now" / path.name).read_bytes() == path.read_bytes()
        assert read_record(path.read_bytes(), path.name)[1]["subjects"][0]["name"] == target.name


@pytest.mark.parametrize("train", ["attention", "lora"])
def test_each_is_drawn_right_after_tuning(photos, work, tmp_path, train):
    """Of adapters for a PromptNet that is in no preset, too."""
    parent = work / "drawn-parent.pfz"
    if not parent.exists():
        ok("pretrain", photos[0], "--preset", "tiny-random", "--steps", 1, "-o", parent)
    tuned = ("--no-augment", "--train", train, "--promptnet", parent)
    places = ("-o", tmp_path / "s", "--pictures", tmp_path / "p")
    ok("finetune", *photos, *QUICK, *tuned, "--each", "--draw", DRAWN[0], *places)
    for photo in photos:
        ok("sample", tmp_path / "s" / f"{photo.stem}.pfz", DRAWN[0], "-o", tmp_path / "later" / photo.stem)
        (now,), (later,) = ((tmp_path / kind / photo.stem).iterdir() for kind in ("p", "later"))
        assert now.read_bytes() == later.read_bytes()


def test_two_processes_share_the_photos(photos, tmp_path):
    """Each makes some, and a failure in one of them is told of by the first, with its exit code."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    arguments = ("finetune", *photos, bad, *QUICK, "--no-augment", "--each", "-o", tmp_path / "s", "--json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "profusion_cli")
    result = subprocess.run([*launcher, *map(str, arguments)], capture_output=True, text=True, env=environment)
    assert result.returncode != 0
    told = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    assert len(told["made"]) == 2 and [one["exit_code"] for one in told["failed"]] == [5]
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"ann.pfz", "bob.pfz"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("finetune", "a.png", "b/a.png", "--each", "-o", "s"), "both become"),
        (("finetune", "a.png", "-", "--each", "-o", "s"), "--each reads files"),
        (("finetune", "a.png", "--each", "-o", "s.pfz"), "name of a file"),
        (("finetune", "a.png", "--each", "--box", "0,0,9,9", "-o", "s"), "--box"),
        (("finetune", "a.png", "--pictures", "p", "-o", "s.pfz"), "--draw"),
        (("finetune", "a.png", "--draw", "S*", "-o", "-"), "--draw tells"),
        (("sample", "a.pfz", "S*", "--each", "--sheet", "x.png"), "--sheet"),
        (("sample", "a.pfz", "b/a.pfz", "S*", "--each"), "both become"),
    ],
)
def test_what_cannot_be_said_of_each_is_told(arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2 and word in result.stderr


def test_a_kept_base_gives_what_was_read(photos, tmp_path):
    """Tuning one subject leaves nothing behind for the next."""
    from profusion_cli.config import BaseConfig, RandomConfig
    from profusion_cli.runtime.device import resolve_placement

    placement = resolve_placement("cpu", "float32", training=True)
    with KeptBase(BaseConfig("tiny-random", random=RandomConfig()), placement) as base:
        before = {name: value.clone() for name, value in base.unet.state_dict().items()}
        for parameter in base.unet.parameters():
            parameter.data.zero_()
        base.release("unet")
        after = base.unet.state_dict()
    assert all((after[name] == before[name]).all() for name in before)
