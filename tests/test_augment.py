"""`augment`: masks, exact geometry, backgrounds, the images bundle; and `finetune` that augments first."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from PIL import Image, ImageDraw

from profusion_cli import masks
from profusion_cli.augmentation import (
    VISIBLE,
    Augmented,
    Transform,
    draw_transform,
    move_subject,
    read_images,
    warp,
)
from profusion_cli.bundle import read_bundle
from profusion_cli.config import AugmentConfig
from profusion_cli.errors import BundleError, InputError, OutputError
from profusion_cli.images import crop_square, decode_photo, read_record
from profusion_cli.jobs.photos import as_photo
from profusion_cli.listener import LOGGED
from profusion_cli.presets import resolve_config
from tests.conftest import SHARED, draw_photo, ok, run, write_bundle

TINY = ("--preset", "tiny-random")
needs_faces = pytest.mark.skipif(not (SHARED / "faces").is_dir(), reason="the photographs are not here")


def bundle_at(path: Path):
    return read_bundle(path.read_bytes(), path.name)


def noise_picture(size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A picture of which no two pixels are alike, and a mask with straight and round edges."""
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).ellipse((20, 10, 60, 80), fill=255)
    ImageDraw.Draw(mask).rectangle((50, 30, 75, 50), fill=255)
    return picture, np.asarray(mask)


@pytest.fixture(scope="module")
def augmented(photo, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("augmented") / "aug.pfz"
    ok("augment", photo, *TINY, "--class-word", "a toy", "-o", target)
    return target


# --- geometry ------------------------------------------------------------------------------------------------

TRANSFORMS = [
    Transform(0.6, 10, 0.2, -0.2),
    Transform(1.0, -10, -0.13, 0.07),
    Transform(0.83, 3.3, 0.01, 0.02, flip=True),
    Transform(1.0, 0.0, 0.5, 0.0),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_subject_is_the_transformed_photo(transform):
    """Against Pillow, which has an affine transform of its own."""
    picture, mask = noise_picture()
    size, angle = len(mask), np.deg2rad(transform.degrees)
    forward = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * transform.scale
    forward = forward @ np.diag([-1.0 if transform.flip else 1.0, 1.0])
    back = np.linalg.inv(forward)
    middle, shift = np.full(2, size / 2), np.array([transform.dx, transform.dy]) * size
    offset = middle - back @ (middle + shift)
    coefficients = (*back[0], offset[0], *back[1], offset[1])

    def pillow(array: np.ndarray, how: Image.Resampling) -> np.ndarray:
        moved = Image.fromarray(array).transform((size, size), Image.Transform.AFFINE, coefficients, how)
        return np.asarray(moved).astype(int)

    moved, moved_mask = warp(picture, mask, transform)
    inside = moved_mask > 0
    assert np.abs(moved - pillow(picture, Image.Resampling.BILINEAR))[inside].max() <= 1
    # the mask is Pillow's, but for the seam, of which no pixel is taken that saw anything beside the subject
    nearest = pillow(mask, Image.Resampling.NEAREST) > 0
    assert not (inside & ~nearest).any()
    assert inside.sum() > 0.85 * nearest.sum()
    repainted, _ = warp(np.where(mask[..., None] > 0, picture, 0).astype(np.uint8), mask, transform)
    assert (repainted == moved).all()


def test_standing_still_changes_nothing():
    picture, mask = noise_picture()
    moved, moved_mask = warp(picture, mask, Transform())
    assert (moved_mask == mask).all()
    assert (moved == np.where(mask[..., None] > 0, picture, 0)).all()


def test_nothing_wraps_round():
    picture = np.full((64, 64, 3), 255, np.uint8)
    _, moved_mask = warp(picture, np.full((64, 64), 255, np.uint8), Transform(dx=0.25, dy=-0.5))
    expected = np.zeros((64, 64), np.uint8)
    expected[:32, 16:] = 255
    assert (moved_mask == expected).all()


def test_drawn_transforms_keep_to_their_ranges_and_the_subject_in_sight():
    config = AugmentConfig()
    mask = np.zeros((64, 64), np.uint8)
    mask[0:20, 0:20] = 255  # in the corner, from where most moves lose it
    drawn = [draw_transform(config, mask, np.random.default_rng(seed)) for seed in range(40)]
    for transform in drawn:
        assert 0.6 <= transform.scale <= 1.0
        assert abs(transform.degrees) <= 10
        assert max(abs(transform.dx), abs(transform.dy)) <= 0.2
        assert not transform.flip
        _, moved = warp(np.zeros((64, 64, 3), np.uint8), mask, transform)
        assert (moved > 0).sum() > 0.8 * VISIBLE * 400 * transform.scale**2 - 40
    assert len(set(drawn)) == 40
    assert any(draw_transform(AugmentConfig(flip=True), mask, np.random.default_rng(seed)).flip for seed in range(9))


@pytest.mark.parametrize("extra", [(), ("--no-inpaint",)])
def test_every_view_of_a_known_mask_holds_the_transformed_photo(tmp_path, extra):
    """End to end: from the file to the bundle, with the seam left out by nothing but the bundle's own mask."""
    size = 128
    picture, mask = noise_picture(size)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    target = tmp_path / "aug.pfz"
    ok("augment", tmp_path / "photo.png", "--mask", tmp_path / "mask.png", *TINY, *extra, "--views", 4, "-o", target)
    bundle = bundle_at(target)
    images = read_images(bundle)
    assert (images.original == picture).all()
    assert (images.original_mask == mask).all()
    for view, found, found_mask in zip(
        bundle.manifest["augmentation"]["views"], images.pictures, images.masks, strict=True
    ):
        transform = Transform(**{key: value for key, value in view.items() if key != "seed"})
        wanted, wanted_mask = warp(picture, mask, transform)
        assert (found_mask == wanted_mask).all()
        assert (found[found_mask > 0] == wanted[found_mask > 0]).all()
        outside = found[found_mask == 0].reshape(-1, 3)
        assert (len(np.unique(outside, axis=0)) == 1) == bool(extra)
    assert {item["kind"] for item in bundle.manifest["inputs"]} == {"photo", "mask"}


# --- masks ---------------------------------------------------------------------------------------------------


def test_the_thing_in_the_middle_is_found(photo):
    decoded = decode_photo(photo.read_bytes(), "photo")
    found = masks.thing_mask(decoded, 128) > 0
    truth = Image.new("L", decoded.size)
    ImageDraw.Draw(truth).ellipse((40, 20, 110, 120), fill=255)
    wanted = np.asarray(crop_square(truth.convert("RGB"), 128).convert("L")) > 127
    assert (found & wanted).sum() / (found | wanted).sum() > 0.95
    assert (masks.thing_mask(decoded, 128) == found * 255).all()


def test_a_mask_is_cropped_like_its_photo():
    photo = as_photo(Image.new("RGB", (160, 140)))
    mask = Image.new("RGB", photo.size)
    mask.paste("white", (50, 20, 90, 60))
    by_file = masks.file_mask(as_photo(mask), photo, 70)
    assert (by_file == masks.box_mask((50, 20, 40, 40), photo, 70)).all()
    assert np.argwhere(by_file).min(0).tolist() == [10, 20]  # the square starts at x = 10
    assert (by_file > 0).sum() == 400


def test_a_halved_photo_has_its_box_and_mask_where_the_whole_one_has_them(photo, tmp_path, monkeypatch):
    mask = Image.new("L", (160, 140))
    mask.paste(255, (50, 20, 90, 60))
    mask.save(tmp_path / "mask.png")
    found = {}
    for pixels in (32_000_000, 10_000):
        monkeypatch.setattr("profusion_cli.images.photos.ORDINARY_PIXELS", pixels)
        whole = decode_photo(photo.read_bytes(), "photo")
        by_file = decode_photo((tmp_path / "mask.png").read_bytes(), "mask.png", as_mask=True)
        found[whole.image.size] = [
            masks.file_mask(by_file, whole, 70),
            masks.box_mask((50, 20, 40, 40), whole, 70),
            masks.thing_mask(whole, 70),
        ]
        assert whole.size == (160, 140)
        with pytest.raises(InputError, match="160x140"):
            masks.box_mask((100, 0, 80, 80), whole, 70)
    for one, other in zip(found[160, 140], found[80, 70], strict=True):
        assert (one != other).mean() < 0.02


def test_a_transparent_mask_marks_what_is_opaque(tmp_path):
    """Also the subject cut out of the photo, which is darker than the white that a photo is laid on."""
    shape = Image.new("L", (64, 64))
    shape.paste(255, (20, 20, 50, 50))
    for colour in ("white", "black"):
        cut = Image.new("RGB", shape.size, colour)
        cut.putalpha(shape)
        cut.save(tmp_path / "mask.png")
        mask = decode_photo((tmp_path / "mask.png").read_bytes(), "mask.png", as_mask=True)
        assert "what is opaque" in mask.notes[0]
        found = masks.file_mask(mask, as_photo(Image.new("RGB", shape.size)), 64)
        assert (found == np.asarray(shape)).all()


@needs_faces
def test_the_wall_beside_a_turned_face_is_not_the_face():
    photo = decode_photo((SHARED / "faces" / "bengio.jpg").read_bytes(), "bengio")
    found = masks.face_mask(photo, 512)[0]
    assert not found[320:350, 390:].any()
    assert found[320:350, 200:370].all()


@needs_faces
@pytest.mark.parametrize("name", ["00041", "bengio", "danielwu"])
def test_faces_are_found_in_photographs(name):
    photo = decode_photo((SHARED / "faces" / f"{name}.jpg").read_bytes(), name)
    found, others = masks.face_mask(photo, 512)
    assert others == 0
    rows, columns = np.nonzero(found)
    assert 0.25 < (found > 0).mean() < 0.65
    assert found[200:300, 230:280].all()  # eyes and nose
    assert columns.min() > 25
    assert columns.max() < 480
    assert (masks.face_mask(photo, 512)[0] == found).all()
    small = masks.face_mask(photo, 128)[0]
    assert abs((small > 0).mean() - (found > 0).mean()) < 0.01
    assert rows.min() < 80


@needs_faces
def test_the_largest_of_several_faces_is_taken_and_the_others_mentioned(tmp_path):
    face = Image.open(SHARED / "faces" / "bengio.jpg").convert("RGB")
    group = Image.new("RGB", (800, 800), "grey")
    group.paste(face.resize((500, 500)), (0, 0))
    group.paste(face.resize((280, 280)), (510, 510))
    group.save(tmp_path / "group.png")
    result = ok(
        *("augment", tmp_path / "group.png", *TINY, "--set", "augment.method=face", "--no-inpaint"),
        *("--views", 1, "-o", tmp_path / "a.pfz"),
    )
    assert "2 faces" in result.stderr
    mask = read_images(bundle_at(tmp_path / "a.pfz")).original_mask
    assert np.argwhere(mask).max() < 85


# --- bad input -----------------------------------------------------------------------------------------------

BAD = {
    "no face": (["--set", "augment.method=face"], 5, ["--mask", "--box", "augment.method=thing", "--no-augment"]),
    "mask of another size": (["--mask", "other.png"], 5, ["99x99", "160x140"]),
    "empty mask": (["--mask", "black.png"], 5, ["marks nothing"]),
    "full mask": (["--mask", "white.png"], 5, ["covers the whole"]),
    "faint mask": (["--mask", "faint.png"], 5, ["lightest pixel is 1 of 255", "marks nothing"]),
    "mask that is none": (["--mask", "text.png"], 5, ["text.png"]),
    "mask that is missing": (["--mask", "nowhere.png"], 5, ["nowhere.png"]),
    "box outside": (["--box", "100,0,80,80"], 5, ["100,0,80,80", "160x140"]),
    "box without size": (["--box", "10,10,0,5"], 5, ["10,10,0,5", "below 1"]),
    "box of a pixel": (["--box", "80,70,1,1"], 5, ["marks almost nothing"]),
    "subject moved away": (
        ["--box", "10,0,12,12", "--set", "augment.scale_min=4", "--set", "augment.scale_max=4"],
        5,
        ["Nothing of the subject", "augment.scale_max"],
    ),
    "box beside the square": (["--box", "0,0,9,140"], 5, ["140x140", "marks nothing"]),
    "box around it all": (["--box", "0,0,160,140"], 5, ["covers the whole"]),
    "box that is none": (["--box", "1,2,3"], 2, ["x,y,w,h"]),
    "mask and box": (["--mask", "black.png", "--box", "1,2,3,4"], 2, ["together"]),
    "no views": (["--views", "0"], 3, ["augment.views=0"]),
    "crossed scales": (["--set", "augment.scale_min=2"], 3, ["scale_min=2.0"]),
    "unknown method": (["--set", "augment.method=fase"], 3, ["face"]),
    "no model": (["--set", "augment.model.random=null"], 3, ["augment.model"]),
}


@pytest.mark.parametrize("command", ["augment", "finetune"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, command, photo, tmp_path, monkeypatch):
    from profusion_cli.runtime import backbone

    monkeypatch.setattr(backbone.BaseModel, "__enter__", lambda self: pytest.fail("a model was loaded"))
    monkeypatch.chdir(tmp_path)
    for name, size, colour in (
        ("other", (99, 99), 255),
        ("black", (160, 140), 0),
        ("white", (160, 140), 255),
        ("faint", (160, 140), 1),
    ):
        Image.new("L", size, colour).save(f"{name}.png")
    Path("text.png").write_text("no picture")
    before = sorted(tmp_path.iterdir())
    arguments, code, words = BAD[case]
    result = run(command, photo, *TINY, *arguments, "-o", "x.pfz")
    assert result.exit_code == code, result.stderr
    text = " ".join(result.stderr.split())
    assert all(word in text for word in words), text
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("colours", [1, 2])
def test_a_picture_of_nothing(colours):
    plain = Image.new("RGB", (64, 64), "grey")
    if colours == 2:
        plain.paste("white", (0, 0, 3, 64))
    with pytest.raises(InputError, match="marks nothing"):
        masks.thing_mask(as_photo(plain), 64)


def test_missing_weights_are_named_with_the_ways_out(photo, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    arguments = ("--set", "augment.model.id=some/inpainting", "-o", tmp_path / "x.pfz")
    for command in ("augment", "finetune"):
        result = run(command, photo, *TINY, *arguments)
        assert result.exit_code == 8, result.stderr
        text = result.stderr.replace("\n", "")
        for word in ("some/inpainting", str(tmp_path / "cache"), "offline", "--no-inpaint", "augment.model.id=FOLDER"):
            assert word in text
    ok("augment", photo, *TINY, *arguments, "--no-inpaint")


def test_outputs_never_replace_inputs(photo, tmp_path):
    for name in ("photo.png", "original.png"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    target = tmp_path / "photo.png"
    for arguments in (
        ("augment", target, *TINY, "-o", target),
        ("augment", tmp_path / "original.png", *TINY, "-o", tmp_path / "a.pfz", "--save-images", tmp_path),
        ("augment", photo, *TINY, "--mask", target, "-o", target),
        ("augment", photo, *TINY, "-o", tmp_path / "look", "--save-images", tmp_path / "look"),
        ("finetune", photo, target, *TINY, "-o", target),
    ):
        result = run(*arguments, "--force")
        assert result.exit_code == 2, result.stderr
        assert "Choose another name" in result.stderr
    for name in ("photo.png", "original.png"):
        assert (tmp_path / name).read_bytes() == photo.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_options_of_a_model_that_is_not_used(photo, tmp_path):
    result = run("augment", photo, *TINY, "--no-inpaint", "--dtype", "float16", "-o", tmp_path / "x.pfz")
    assert result.exit_code == 2
    assert "--dtype has no effect" in result.stderr


def test_pictures_that_lost_much_of_the_subject_are_named(photo, tmp_path):
    arguments = ("augment", photo, *TINY, "--no-inpaint", "--box", "20,20,100,100", "-o")
    assert "Less than" not in ok(*arguments, tmp_path / "a.pfz").stderr
    enlarged = ("--set", "augment.scale_min=3", "--set", "augment.scale_max=3")
    assert "pictures: 1,2,3." in ok(*arguments, tmp_path / "b.pfz", *enlarged).stderr


def test_a_model_that_is_not_for_inpainting(photo, base_folder, tmp_path):
    result = run("augment", photo, *TINY, "--set", f"augment.model.id={base_folder}", "-o", tmp_path / "x.pfz")
    assert result.exit_code == 8
    assert "4 channels" in result.stderr
    assert "--no-inpaint" in result.stderr


# --- the bundle ----------------------------------------------------------------------------------------------


def test_the_bundle_and_its_sheet(photo, augmented):
    bundle = bundle_at(augmented)
    manifest = bundle.manifest
    assert manifest["kind"] == "images"
    assert manifest["parents"] == []
    assert manifest["base"]["fingerprint"] == {}
    assert [item["kind"] for item in manifest["inputs"]] == ["photo"]
    record = manifest["augmentation"]
    assert record["prompt"].startswith("a photo of a toy, highly detailed")
    assert record["negative_prompt"].startswith("magzine")
    assert [view["seed"] for view in record["views"]] == [0, 1, 2]
    images = read_images(bundle)
    square = crop_square(Image.open(photo), 128)
    assert (images.original == np.asarray(square)).all()
    assert images.pictures.shape == (3, 128, 128, 3)
    sheet = decode_photo(bundle.preview, "sheet").image
    assert sheet.width > 3 * sheet.height / 2


def test_the_same_command_gives_the_same_bytes(photo, augmented, tmp_path):
    arguments = ("augment", photo, *TINY, "--class-word", "a toy")
    ok(*arguments, "-o", tmp_path / "b.pfz")
    assert (tmp_path / "b.pfz").read_bytes() == augmented.read_bytes()
    ok(*arguments, "--seed", 1, "-o", tmp_path / "c.pfz")
    first, second = (read_images(bundle_at(path)) for path in (augmented, tmp_path / "c.pfz"))
    assert (first.masks[1:] == second.masks[:2]).all()  # view j is that of seed + j
    assert (np.abs(first.pictures[1:].astype(int) - second.pictures[:2]) <= 1).all()
    assert (first.masks[0] != second.masks[0]).any()


def test_the_batch_size_changes_no_picture(photo, augmented, tmp_path):
    ok(*("augment", photo, *TINY, "--class-word", "a toy", "--set", "augment.batch_size=2", "-o", tmp_path / "b.pfz"))
    first, second = (read_images(bundle_at(path)).pictures.astype(int) for path in (augmented, tmp_path / "b.pfz"))
    assert np.abs(first - second).max() <= 1


def test_the_model_is_asked_to_paint_around_each_subject(monkeypatch):
    """What diffusers' pipeline is given: the moved subjects, holes where they are not, the texts, noise by the seed."""
    from profusion_cli.runtime.inpaint import InpaintingModel, paint_backgrounds

    asked = []

    class Paint:
        def to(self, device):
            return self

        def __call__(self, **given):
            asked.append(given | {"noise": [torch.randn(4, generator=one).tolist() for one in given["generator"]]})
            return SimpleNamespace(images=np.full((len(given["prompt"]), 128, 128, 3), 0.5))

    monkeypatch.setattr(InpaintingModel, "pipeline", Paint())
    settings = {"augment.batch_size": 2, "augment.views": 3, "augment.steps": 7, "augment.guidance_scale": 4.5}
    config = resolve_config("tiny-random", None, {**settings, "class_word": "a toy", "augment.negative_prompt": "blur"})
    picture, mask = noise_picture(128)
    moved = move_subject(Image.fromarray(picture), mask, config.augment, 5)
    backgrounds, _ = paint_backgrounds(moved, config, LOGGED)
    assert backgrounds.shape == moved.pictures.shape and (backgrounds == 128).all()
    assert [len(given["prompt"]) for given in asked] == [2, 1]

    def everything(key: str) -> list:
        return [one for given in asked for one in given[key]]

    for image, hole, drawn, found in zip(
        everything("image"), everything("mask_image"), moved.pictures, moved.masks, strict=True
    ):
        assert (np.asarray(image) == drawn).all()
        assert (np.asarray(hole) == 255 - found).all()
    assert {text[:14] for text in everything("prompt")} == {"a photo of a t"}
    assert set(everything("negative_prompt")) == {"blur"}
    assert {(one["guidance_scale"], one["num_inference_steps"], one["strength"]) for one in asked} == {(4.5, 7, 1.0)}
    noise = everything("noise")
    later = move_subject(Image.fromarray(picture), mask, config.augment, 6)
    paint_backgrounds(later, config, LOGGED)
    assert everything("noise")[3:5] == noise[1:], "view j has the noise of seed + j"
    assert len({tuple(one) for one in noise}) == 3


def test_solvers_take_the_steps_that_are_asked_for(photo, tmp_path, monkeypatch):
    """With both solvers the UNet is asked once a step, and they paint different backgrounds."""
    from diffusers import UNet2DConditionModel

    asked, forward = [], UNet2DConditionModel.forward
    monkeypatch.setattr(UNet2DConditionModel, "forward", lambda *a, **k: asked.append(1) or forward(*a, **k))
    pictures = []
    for solver in ("ddim", "dpm-solver++"):
        asked.clear()
        target = tmp_path / f"{solver}.pfz"
        settings = ("--set", f"augment.solver={solver}", "--set", "augment.steps=6", "--views", 2)
        ok("augment", photo, *TINY, *settings, "-o", target)
        assert len(asked) == 6
        pictures.append(read_images(bundle_at(target)))
    ddim, multistep = pictures
    assert (ddim.masks == multistep.masks).all()
    inside = ddim.masks > 0
    assert (ddim.pictures[inside] == multistep.pictures[inside]).all()
    assert (ddim.pictures[~inside] != multistep.pictures[~inside]).mean() > 0.1
    assert bundle_at(tmp_path / "dpm-solver++.pfz").manifest["config"]["augment"]["solver"] == "dpm-solver++"


def test_no_inpaint_says_so(photo, tmp_path):
    result = ok("augment", photo, *TINY, "--no-inpaint", "-o", tmp_path / "a.pfz")
    assert "plain colours" in result.stderr
    manifest = bundle_at(tmp_path / "a.pfz").manifest
    assert manifest["augmentation"]["inpainted"] is False
    assert manifest["base"]["id"] is None
    assert manifest["config"]["augment"]["inpaint"] is False


def test_the_bundle_is_told_of_before_the_pictures_are_written(photo, tmp_path, monkeypatch):
    def full(*_):
        raise OutputError("The disk is full.")

    monkeypatch.setattr("profusion_cli.commands.augment._save_images", full)
    result = run("augment", photo, *TINY, "--no-inpaint", "--views", 1, "-o", tmp_path / "a.pfz")
    assert result.exit_code == OutputError.exit_code
    assert result.stdout == f"{tmp_path / 'a.pfz'}\n"


def test_saved_pictures_and_json(photo, tmp_path):
    folder, target = tmp_path / "pictures", tmp_path / "a.pfz"
    arguments = ("augment", photo, *TINY, "--views", 2, "--save-images", folder, "--no-inpaint", "-o", target)
    result = json.loads(ok(*arguments, "--json").stdout)
    names = ["original.png", "01.png", "02.png"]
    assert result["pictures"] == [str(folder / name) for name in names]
    assert result["sheet"] == str(folder / "sheet.png")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "sheet.png"])
    bundle = bundle_at(target)
    images = read_images(bundle)
    sheet = decode_photo(bundle.preview, "preview").image
    assert (np.asarray(Image.open(folder / "sheet.png")) == np.asarray(sheet)).all()
    assert (np.asarray(Image.open(folder / "02.png")) == images.pictures[1]).all()
    record = read_record((folder / "02.png").read_bytes(), "02.png")[1]
    assert record["view"]["seed"] == 1
    record = read_record((folder / "sheet.png").read_bytes(), "sheet.png")[1]
    assert [view["seed"] for view in record["views"]] == [0, 1]
    for name in ("02.png", "sheet.png"):
        (told, _) = json.loads(ok("inspect", folder / name, photo, "--json").stdout)["files"]
        assert [origin["is_the_file"] for origin in told["made_from"]] == [str(photo)]
    target.unlink()
    result = run(*arguments)
    assert result.exit_code == 9
    assert "original.png" in result.stderr
    assert not target.exists()


def test_dry_run_prints_the_augmentation(photo, tmp_path):
    result = ok("augment", photo, *TINY, "--views", 5, "--no-inpaint", "--dry-run", "-o", tmp_path / "x.pfz")
    config = yaml.safe_load(result.stdout)
    assert config["augment"]["views"] == 5
    assert config["augment"]["inpaint"] is False


@pytest.mark.parametrize("damage", ["size", "dtype", "missing", "count", "none"])
def test_pictures_that_do_not_belong_together_are_refused(augmented, tmp_path, damage):
    bundle = bundle_at(augmented)
    tensors = safetensors.numpy.load(bytes(bundle.read("images.safetensors")))
    match damage:
        case "size":
            tensors["original"] = tensors["original"][:, :64].copy()
        case "dtype":
            tensors["masks"] = tensors["masks"].astype(np.float32)
        case "missing":
            del tensors["original_mask"]
        case "count":
            tensors["masks"] = tensors["masks"][:2].copy()
        case "none":
            tensors["masks"], tensors["pictures"] = tensors["masks"][:0].copy(), tensors["pictures"][:0].copy()
    target = tmp_path / "bad.pfz"
    write_bundle(target, bundle.manifest, {"images.safetensors": safetensors.numpy.save(tensors)})
    with pytest.raises(BundleError, match="do not belong together"):
        read_images(bundle_at(target))
    assert run("finetune", target, "-o", tmp_path / "x.pfz").exit_code == 4


# --- finetune ------------------------------------------------------------------------------------------------


def count_encodings(monkeypatch) -> list[str]:
    from profusion_cli.runtime.backbone import BaseModel

    log: list[str] = []
    for name in ("encode_moments", "encode_image_tokens"):
        original = getattr(BaseModel, name)

        def counted(self, images, _original=original, _name=name):
            log.extend([_name] * len(images))
            return _original(self, images)

        monkeypatch.setattr(BaseModel, name, counted)
    return log


def views_in(path: Path) -> int:
    tensors = safetensors.numpy.load(bytes(bundle_at(path).read("views.safetensors")))
    return {len(tensor) for tensor in tensors.values()}.pop()


def test_finetune_augments_a_photo_and_keeps_the_original_as_its_reference(photo, augmented, tmp_path, monkeypatch):
    """A photo and its bundle of the same seed train to the same subject; each view is encoded once."""
    log = count_encodings(monkeypatch)
    common = ("--steps", 1, "--class-word", "a toy")
    made = json.loads(ok("finetune", photo, *TINY, *common, "--json", "-o", tmp_path / "a.pfz").stdout)
    assert made["views"] == 4
    assert sorted(log) == ["encode_image_tokens"] * 4 + ["encode_moments"] * 4
    ok("finetune", augmented, *common, "-o", tmp_path / "b.pfz")
    first, second = bundle_at(tmp_path / "a.pfz"), bundle_at(tmp_path / "b.pfz")
    for name in first.files:
        assert first.read(name) == second.read(name)
    assert views_in(tmp_path / "a.pfz") == 1
    assert second.manifest["parents"] == [bundle_at(augmented).sha256]
    assert second.manifest["inputs"] == first.manifest["inputs"]
    assert second.manifest["config"]["preset"] == "tiny-random"
    assert len(first.manifest["augmentation"]["views"]) == 3
    ok("finetune", photo, *TINY, *common, "--no-augment", "-o", tmp_path / "c.pfz")
    plain = bundle_at(tmp_path / "c.pfz")
    assert plain.read("views.safetensors") == first.read("views.safetensors")
    assert plain.read("promptnet.safetensors") != first.read("promptnet.safetensors")


def test_drop_leaves_pictures_out(augmented, tmp_path, monkeypatch):
    from profusion_cli.runtime import subjects

    seen = []
    original = subjects.BaseModel.encode_moments
    monkeypatch.setattr(
        subjects.BaseModel, "encode_moments", lambda self, images: seen.extend(images) or original(self, images)
    )
    ok("finetune", augmented, "--steps", 1, "--drop", "2,2", "-o", tmp_path / "a.pfz")
    images = read_images(bundle_at(augmented))
    wanted = [images.original, images.pictures[0], images.pictures[2]]
    assert [np.asarray(image).tobytes() for image in seen] == [array.tobytes() for array in wanted]
    assert bundle_at(tmp_path / "a.pfz").manifest["augmentation"] == {"dropped": [2]}


@pytest.mark.parametrize(
    "arguments",
    [
        ["aug.pfz", "--drop", "4"],
        ["aug.pfz", "--drop", "0"],
        ["aug.pfz", "--drop", "one"],
        ["photo.png", "--drop", "9"],
        ["aug.pfz", "--no-augment"],
        ["aug.pfz", "--views", "3"],
        ["aug.pfz", "--box", "1,1,9,9"],
        ["photo.png", "--no-augment", "--views", "3"],
        ["photo.png", "--no-augment", "--drop", "1"],
        ["photo.png", "photo.png", "--box", "1,1,9,9"],
        ["photo.png", "--steps", "0", "--views", "2"],
        ["aug.pfz", "photo.png", "aug.pfz", "--drop", "1"],
    ],
)
def test_options_without_effect_are_refused(arguments, photo, augmented, tmp_path, monkeypatch):
    (tmp_path / "aug.pfz").write_bytes(augmented.read_bytes())
    (tmp_path / "photo.png").write_bytes(photo.read_bytes())
    monkeypatch.chdir(tmp_path)
    result = run("finetune", *arguments, *TINY, "-o", "x.pfz")
    assert result.exit_code == 2, result.stderr
    assert not Path("x.pfz").exists()


def test_several_photos_are_views_as_they_are_and_bundles_may_join(photo, augmented, tmp_path, monkeypatch):
    log = count_encodings(monkeypatch)
    other = draw_photo(tmp_path / "other.png", "red")
    ok("finetune", photo, other, *TINY, "--steps", 1, "-o", tmp_path / "a.pfz")
    assert len(log) == 4
    log.clear()
    ok("finetune", other, augmented, "--steps", 1, "-o", tmp_path / "b.pfz")
    assert len(log) == 2 * (2 + 3)
    assert views_in(tmp_path / "b.pfz") == 2
    assert len(bundle_at(tmp_path / "b.pfz").manifest["inputs"]) == 2


def test_a_bundle_of_another_resolution(augmented, tmp_path):
    for dry in ((), ("--dry-run",)):
        result = run("finetune", augmented, "--set", "base.resolution=64", "-o", tmp_path / "x.pfz", *dry)
        assert result.exit_code == 4
        assert "128" in result.stderr


def test_a_dry_run_finds_views_to_drop_that_are_not_there(augmented, photo, tmp_path):
    for arguments in ((augmented,), (photo, *TINY)):
        result = run("finetune", *arguments, "--drop", 9, "--dry-run", "-o", tmp_path / "x.pfz")
        assert result.exit_code == 2 and not result.stdout, result.stderr


def test_a_preset_beats_the_bundle_but_for_the_augmentation(augmented, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": {"id": "my-base", "resolution": 128}}))
    result = ok("finetune", augmented, "--preset", tmp_path / "mine.yaml", "--dry-run", "-o", tmp_path / "x.pfz")
    config = yaml.safe_load(result.stdout)
    assert config["base"]["id"] == "my-base"
    assert config["class_word"] == "a toy"
    assert config["augment"]["views"] == 3
    assert yaml.safe_load(ok("finetune", augmented, "--dry-run", "-o", "x.pfz").stdout)["base"]["id"] == "tiny-random"


def test_views_are_moved_whatever_their_number():
    """View j depends on its seed alone."""
    picture, mask = noise_picture()
    few, many = (move_subject(Image.fromarray(picture), mask, AugmentConfig(views=n), 5) for n in (2, 4))
    assert isinstance(few, Augmented)
    assert (few.pictures == many.pictures[:2]).all()
