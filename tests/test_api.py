"""The same from Python: photos -> a subject -> pictures, in memory."""

from __future__ import annotations

import logging

import pytest
from PIL import Image

import profusion_cli
from profusion_cli import draw, draw_way, load_config, make_subject, make_views
from profusion_cli.bundle import read_bundle
from profusion_cli.errors import BundleError, ConfigError, InputError, UsageError
from profusion_cli.images import read_record
from profusion_cli.jobs.views import Region
from tests.conftest import ok, prepare_for_commands

TINY = {"finetune.steps": 1, "finetune.batch_size": 2, "sample.steps": 2, "augment.views": 2, "augment.inpaint": False}


@pytest.fixture(autouse=True, scope="module")
def bases():
    prepare_for_commands()


@pytest.fixture(scope="module")
def config():
    return load_config("tiny-random", TINY)


@pytest.fixture(scope="module")
def square(photo):
    with Image.open(photo) as image:
        return image.convert("RGB")


@pytest.fixture(scope="module")
def views(square, config):
    return make_views(square, config, Region(box=(30, 20, 60, 60)))


@pytest.fixture(scope="module")
def subject(square, config):
    return make_subject([square], config, augment=False)


def test_what_python_makes_is_what_the_commands_make(photo, square, config, subject, tmp_path):
    settings = [f"--set={key}={value}".replace("False", "false") for key, value in TINY.items()]
    ok("finetune", photo, "-o", tmp_path / "me.pfz", "--preset", "tiny-random", "--no-augment", *settings)
    by_command = read_bundle((tmp_path / "me.pfz").read_bytes(), "me.pfz")
    assert {name: bytes(subject.read(name)) for name in subject.files} == {
        name: bytes(by_command.read(name)) for name in by_command.files
    }
    assert subject.manifest["config"] == by_command.manifest["config"]
    subject.save(tmp_path / "mine.pfz")
    ok("sample", tmp_path / "mine.pfz", "S* on a beach", "-o", tmp_path / "by-command.png")
    (picture,) = draw([subject], ["S* on a beach"])
    picture.save(tmp_path / "by-python.png")
    parameters, record = read_record((tmp_path / "by-python.png").read_bytes(), "by-python.png")
    told = read_record((tmp_path / "by-command.png").read_bytes(), "by-command.png")
    assert told[0] == parameters
    assert told[1] == {**record, "subjects": [{**record["subjects"][0], "name": "mine.pfz"}]}
    with Image.open(tmp_path / "by-command.png") as image:
        assert image.tobytes() == picture.image.tobytes()


def test_views_are_made_and_trained_on(square, views, config, caplog):
    assert views.kind == "images"
    made = make_subject([views], config, drop=[2])
    assert made.manifest["pictures"] == 2  # the photo, and one of its two views
    assert made.manifest["parents"] == [views.sha256]
    alone = make_subject([square], config, region=Region(box=(30, 20, 60, 60)))
    assert alone.manifest["pictures"] == 3
    assert "plain colours" in caplog.text and caplog.records[0].levelno == logging.WARNING


def test_several_photos_are_views_as_they_are(square, config):
    assert make_subject([square, square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], config).manifest["pictures"] == 2


def test_a_photo_in_memory_is_turned_upright(square, config):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = square.transpose(Image.Transpose.ROTATE_90)
    turned.getexif().update(exif)
    tuned_not = load_config("tiny-random", {"finetune.steps": 0})
    assert make_subject([turned], tuned_not).preview == make_subject([square], tuned_not).preview


@pytest.mark.parametrize("fault", ["CMYK", "cut off"])
def test_a_photo_in_memory_that_cannot_be_used(fault, square, config, tmp_path):
    file = tmp_path / "face.jpg"
    square.convert("CMYK" if fault == "CMYK" else "RGB").save(file)
    if fault == "cut off":
        file.write_bytes(file.read_bytes()[:-500])
    with Image.open(file) as opened, pytest.raises(InputError, match=r"face\.jpg"):
        make_subject([opened], config)


def test_null_is_a_value():
    assert load_config("sd2").promptnet.weights
    assert load_config("sd2", {"promptnet.weights": None}).promptnet.weights is None


def test_frames_lead_from_subject_to_subject(subject, config):
    frames = list(draw_way([subject, subject], "S* on a beach", 3, config))
    assert [frame.record["weights"] for frame in frames] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]


def test_mistakes_are_told_before_the_work(square, subject, views, config, tmp_path):
    with pytest.raises(ConfigError, match="stepz"):
        load_config("tiny-random", {"finetune.stepz": 1})
    with pytest.raises(UsageError, match="picture 5"):
        make_subject([views], config, drop=[5])
    with pytest.raises(UsageError, match="no photo"):
        make_subject([], config)
    with pytest.raises(UsageError, match="region has no effect"):
        make_subject([square, square], config, region=Region(box=(30, 20, 60, 60)))
    with pytest.raises(UsageError, match="no views to drop"):
        make_subject([square], config, augment=False, drop=[1])
    with pytest.raises(UsageError, match="no subject"):
        draw([], ["S"])
    with pytest.raises(UsageError, match="one prompt"):
        draw([subject], "a photo")
    with pytest.raises(UsageError, match="one subject"):
        draw_way([subject], "S*", 2)
    with pytest.raises(BundleError, match="holds images"):
        draw([views], ["S*"])
    with pytest.raises(UsageError, match="no ending of a picture"):
        next(draw([subject], ["S*"], config)).save(tmp_path / "picture.docx")
    with pytest.raises(AttributeError, match="nothing"):
        profusion_cli.nothing  # noqa: B018
