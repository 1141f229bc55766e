"""What pictures say to programs about who has made them, read by libraries of others."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyexiv2
import pytest
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import Generators

from profusion_cli.bundle import read_bundle
from profusion_cli.images import encode_animation
from profusion_cli.images.marks import COMPOSITE, SOURCE_TYPE, TRAINED
from tests.conftest import ok, run
from tests.test_previews import DRAWN, QUICK

PRETRAIN = ("--preset", "tiny-random", "--steps", 1, "--sample-every", 1, "--set", "pretrain.sample_steps=2")
SAMPLES = "samples-00000001.png"
KEY = "Xmp.iptcExt.DigitalSourceType"


def told_by(path: Path) -> str | None:
    """The digital source type that exiv2 reads; of a GIF, whose XMP it does not read, from where the format has it."""
    data = path.read_bytes()
    if path.suffix == ".gif":
        packet = gif_packet(data)
        return None if packet is None else packet.partition('DigitalSourceType="')[2].partition('"')[0]
    with pyexiv2.ImageData(data) as image:
        return image.read_xmp().get(KEY)


def gif_packet(data: bytes) -> str | None:
    """The XMP packet, by the length that its sub-blocks give (XMP specification, part 3, section 1.1.2)."""
    name = b"XMP DataXMP"
    if name not in data:
        return None
    start = position = data.index(name) + len(name)
    while data[position]:
        position += 1 + data[position]
    return data[start : position - 257].decode()


@pytest.fixture(scope="module")
def pictures(subject: Path, other_subject: Path, photo: Path, work: Path) -> Path:
    """One of everything that is drawn."""
    folder = work / "marked"
    quick = ("--set", "sample.steps=10", "--steps", 2)
    ok("sample", subject, "S* at sea", *quick, "-o", folder / "picture.png", "--sheet", folder / "sheet.png")
    for name in ("way.png", "way.gif", "way.webp"):
        ok("interpolate", subject, other_subject, "S* at sea", "--frames", 2, "--steps", 2, "-o", folder / name)
    drawn = ("--preview-every", 3, "--pictures", folder / "after")
    ok("finetune", photo, *QUICK, *DRAWN, *drawn, "-o", folder / "me.pfz")
    ok("augment", photo, "--preset", "tiny-random", "--views", 1, "-o", folder / "v.pfz", "--save-images", folder / "v")
    ok("pretrain", photo, *PRETRAIN, "-o", folder / "p.pfz")
    return folder


NAMES = (
    *("picture.png", "sheet.png", "way.png", "way.gif", "way.webp"),
    *("me.preview.png", "after/01-s-in-style-0.png", f"p.pfz.work/{SAMPLES}"),
)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_says_so(pictures, name):
    assert told_by(pictures / name) == TRAINED
    with Image.open(pictures / name) as image:
        image.load()
    (entry,) = json.loads(ok("inspect", pictures / name, "--json").stdout)["files"]
    assert entry["record"][SOURCE_TYPE] == TRAINED
    assert "trainedAlgorithmicMedia" in ok("inspect", pictures / name).stdout


def test_views_are_composites_and_photos_are_not_marked(pictures):
    assert told_by(pictures / "v" / "01.png") == told_by(pictures / "v" / "sheet.png") == COMPOSITE
    assert told_by(pictures / "v" / "original.png") is None


def test_the_mark_can_be_left_out_and_that_is_told(subject, other_subject, photo, tmp_path):
    """And a bundle does not decide about it."""
    given = ("S* at sea", "--steps", 2, "--no-mark", "-o")
    assert "--no-mark" in ok("sample", subject, *given, tmp_path / "x.png").stderr
    ok("interpolate", subject, other_subject, "--frames", 2, *given, tmp_path / "x.gif")
    views = ("--views", 1, "--no-mark", "--save-images", tmp_path / "v", "-o", tmp_path / "v.pfz")
    ok("augment", photo, "--preset", "tiny-random", *views)
    ok("pretrain", photo, *PRETRAIN, "--no-mark", "-o", tmp_path / "p.pfz")
    for name in ("x.png", "x.gif", "v/01.png", f"p.pfz.work/{SAMPLES}"):
        assert told_by(tmp_path / name) is None
    assert "marked: not" in " ".join(ok("inspect", tmp_path / "x.png").stdout.split())
    drawn = ("--draw", "S* at sea", "--set", "sample.steps=2", "--pictures", tmp_path / "d")
    ok("finetune", photo, *QUICK, *drawn, "--no-mark", "-o", tmp_path / "me.pfz")
    assert [told_by(path) for path in (tmp_path / "d").iterdir()] == [None]
    assert run("finetune", photo, *QUICK, "--no-mark", "-o", tmp_path / "y.pfz").exit_code == 2
    assert run("pretrain", photo, *PRETRAIN, "--sample-every", 0, "--no-mark", "-o", tmp_path / "y.pfz").exit_code == 2
    ok("sample", tmp_path / "me.pfz", "S* at sea", "--steps", 2, "-o", tmp_path / "y.png")
    assert told_by(tmp_path / "y.png") == TRAINED


def test_a_gif_is_read_behind_its_mark():
    """Also by a reader that takes the packet for sub-blocks, as Pillow does."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    plain, marked = (encode_animation("x.gif", frames, 4, "text", record) for record in ({}, {SOURCE_TYPE: TRAINED}))
    assert gif_packet(plain) is None and "trainedAlgorithmicMedia" in gif_packet(marked)
    with Image.open(io.BytesIO(plain)) as one, Image.open(io.BytesIO(marked)) as other:
        assert one.n_frames == other.n_frames == 4 and one.info["comment"] != other.info["comment"]
        for frame in range(4):
            one.seek(frame)
            other.seek(frame)
            assert one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


# --- consent ---------------------------------------------------------------------------------------------------


def test_a_bundle_says_what_it_is_told_of_consent(photo, tmp_path):
    """And nothing where nothing was given; what is made of it says it too."""
    text = "Ann Ex, by mail, for her own pictures"
    ok("finetune", photo, *QUICK, "--train", "attention", "--consent", text, "-o", tmp_path / "me.pfz")
    ok("compress", tmp_path / "me.pfz", "--rank", 1, "--self-contained", "-o", tmp_path / "small.pfz")
    for name in ("me.pfz", "small.pfz"):
        assert read_bundle((tmp_path / name).read_bytes(), name).manifest["consent"] == text
        assert f"consent: {text}" in ok("inspect", tmp_path / name).stdout
    ok("finetune", photo, *QUICK, "--each", "--consent", text, "-o", tmp_path / "all")
    assert "Ann Ex" in ok("inspect", tmp_path / "all" / f"{photo.stem}.pfz").stdout
    assert run("finetune", photo, *QUICK, "--consent", " ", "-o", tmp_path / "x.pfz").exit_code == 2


def test_nothing_is_said_of_consent_unasked(subject):
    assert "consent" not in read_bundle(subject.read_bytes(), "me.pfz").manifest
    assert "consent" not in ok("inspect", subject).stdout


# --- parameters ------------------------------------------------------------------------------------------------


def test_other_tools_read_the_parameters(subject, tmp_path):
    """By sd-parsers, as A1111's."""
    told = ("--negative-prompt", "blue, red: (dark)", "--seed", 7, "--subject-guidance", 3.5)
    ok("sample", subject, "S* in style, at 3:2", "--steps", 2, *told, "-o", tmp_path / "x.png")
    read = ParserManager().parse(tmp_path / "x.png")
    assert read.generator == Generators.AUTOMATIC1111
    assert (read.full_prompt, read.full_negative_prompt) == ("S* in style, at 3:2", "blue, red: (dark)")
    (sampler,) = read.samplers
    assert sampler.name == "Fusion Sampling (DDIM)"
    assert sampler.parameters == {"cfg_scale": "3.5", "seed": "7", "steps": "2"}
    assert read.metadata["Size"] == "128x128" and read.metadata["Gamma"] == "0.6"
