from __future__ import annotations

import contextlib
import io
import json
import mmap
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from profusion_cli import images
from profusion_cli.commands.picture_targets import check_suffix
from profusion_cli.errors import InputError, UsageError
from profusion_cli.files import sha256_of
from profusion_cli.images import opening, photos
from profusion_cli.options import PHOTO_LIMITS

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "preprocess"


@contextlib.contextmanager
def silent():
    """A warning that would reach the user's terminal is a failure; what Pillow tells developers is not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert not [one for one in caught if not issubclass(one.category, DeprecationWarning | PendingDeprecationWarning)]


def scene(width: int = 64, height: int = 48) -> Image.Image:
    """Smooth, and different under each of the eight orientations."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, x * y / 255], axis=-1).astype(np.uint8))


def noise(width: int = 64, height: int = 64) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def packed(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def decode(data: bytes, name: str = "photo") -> images.Photo:
    with silent():
        photo = images.decode_photo(data, name)
    assert photo.image.mode == "RGB"
    return photo


def refusal(data: bytes, name: str = "photo.jpg") -> InputError:
    with silent(), pytest.raises(InputError) as caught:
        images.decode_photo(data, name)
    assert name in caught.value.message
    assert caught.value.hint.endswith(".")
    return caught.value


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 64)) + png_chunk(b"IEND", b"")


# Decoding


def test_a_plain_png_comes_back_unchanged_with_the_hash_of_its_bytes():
    data = packed(noise(), "PNG")
    photo = decode(data, "me.png")
    assert (photo.name, photo.sha256, photo.notes) == ("me.png", sha256_of(data), ())
    assert np.array_equal(pixels(photo.image), pixels(noise()))


def test_a_memory_map_decodes_like_bytes(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(packed(noise(), "PNG"))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        photo = decode(data)
    assert np.array_equal(pixels(photo.image), pixels(noise()))


STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_every_exif_orientation_gives_the_upright_picture(orientation, kind):
    turn = STORED_AS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene() if turn is None else scene().transpose(turn)
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    photo = decode(packed(stored, kind, exif=exif, **options))
    assert photo.image.size == (64, 48)
    assert np.abs(pixels(photo.image) - pixels(scene())).max() < 12
    assert packed(photo.image, "PNG") == packed(Image.fromarray(np.asarray(photo.image)), "PNG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"nonsense", b"MM\0*\xff\xff\xff\xff", b"II*\0"])
def test_a_photo_with_broken_exif_data_is_still_used(kind, exif):
    assert decode(packed(scene(), kind, exif=b"Exif\0\0" + exif)).image.size == (64, 48)


def test_unreadable_exif_data_are_worth_a_note():
    photo = decode(packed(scene(), "PNG", exif=b"Exif\0\0nonsense"))
    assert len(photo.notes) == 1 and "EXIF" in photo.notes[0]


def test_transparency_is_laid_on_white_with_a_note():
    picture = scene().convert("RGBA")
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[:, :20] = 0
    alpha[:, 20:30] = 128
    picture.putalpha(Image.fromarray(alpha))
    photo = decode(packed(picture, "PNG"))
    shown, original = pixels(photo.image), pixels(scene())
    assert (shown[:, :20] == 255).all()
    assert np.abs(shown[:, 20:30] - (original[:, 20:30] + 255) / 2).max() <= 2
    assert np.array_equal(shown[:, 30:], original[:, 30:])
    assert len(photo.notes) == 1 and "white" in photo.notes[0]


def test_an_opaque_alpha_channel_is_not_worth_a_note():
    photo = decode(packed(scene().convert("RGBA"), "PNG"))
    assert photo.notes == ()
    assert np.array_equal(pixels(photo.image), pixels(scene()))


def test_grey_with_alpha_is_laid_on_white():
    picture = Image.new("LA", (40, 40), (100, 255))
    picture.paste((0, 0), (0, 0, 20, 40))
    shown = pixels(decode(packed(picture, "PNG")).image)
    assert (shown[:, :20] == 255).all() and (shown[:, 20:] == 100).all()


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_a_transparent_palette_entry_is_laid_on_white(transparency):
    picture = Image.new("P", (40, 40), 0)
    picture.putpalette([10, 20, 30, 0, 0, 0, 200, 100, 50])
    picture.paste(1, (0, 0, 20, 40))
    picture.paste(2, (20, 0, 40, 20))
    photo = decode(packed(picture, "PNG", transparency=transparency))
    assert photo.image.getpixel((5, 5)) == (255, 255, 255)
    assert photo.image.getpixel((30, 5)) == (200, 100, 50)
    assert photo.image.getpixel((30, 30)) == (10, 20, 30)
    assert "white" in photo.notes[0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "PPM"])
def test_a_16_bit_ramp_keeps_its_gradient(kind):
    ramp = np.tile(np.linspace(0, 65535, 256).round(), (40, 1))
    if kind == "big-endian TIFF":
        data = packed(Image.frombytes("I;16B", (256, 40), ramp.astype(">u2").tobytes()), "TIFF")
    elif kind == "PPM":
        data = b"P5 256 40 65535\n" + ramp.astype(">u2").tobytes()
    else:
        data = packed(Image.fromarray(ramp.astype(np.uint16)), kind)
    shown = pixels(decode(data).image)
    assert np.array_equal(shown, np.broadcast_to(np.arange(256)[None, :, None], (40, 256, 3)))


def test_16_bits_are_rounded_to_8():
    values = np.tile(np.arange(0, 65536, 61, dtype=np.uint16), (40, 1))
    shown = pixels(decode(packed(Image.fromarray(values), "PNG")).image)
    assert np.array_equal(shown[..., 0], np.rint(values / 257))


def test_a_16_bit_rgb_png_is_scaled_not_clipped():
    row = np.linspace(0, 65535, 256).round().astype(">u2")
    rows = np.repeat(np.tile(row, (40, 1))[..., None], 3, axis=-1)
    body = zlib.compress(b"".join(b"\0" + line.tobytes() for line in rows))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 256, 40, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    shown = pixels(decode(data).image)
    assert np.abs(shown[0, :, 0] - np.arange(256)).max() <= 1


def test_pixels_without_a_fixed_range_are_refused():
    assert "'F'" in refusal(packed(Image.new("F", (64, 64), 0.5), "TIFF")).message
    deep = Image.fromarray(np.full((64, 64), 70000, np.int32))
    assert "70000" in refusal(packed(deep, "TIFF")).message


def test_cmyk_without_a_profile_keeps_its_colours_and_says_so():
    photo = decode(packed(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=95))
    red, green, blue = photo.image.getpixel((20, 20))
    assert red > 240 and green < 15 and blue < 15
    assert "CMYK" in photo.notes[0]


def profile_with_swapped_primaries() -> bytes:
    """sRGB's profile with the red and the blue colorant exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data = data.replace(b"rXYZ", b"tmp_").replace(b"bXYZ", b"rXYZ").replace(b"tmp_", b"bXYZ")
    return bytes(data)


def test_an_srgb_profile_leaves_every_pixel_alone():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = decode(packed(noise(), "PNG", icc_profile=profile))
    assert np.array_equal(pixels(photo.image), pixels(noise()))
    assert photo.notes == ()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_another_rgb_profile_is_applied(mode):
    picture = Image.new("RGB", (40, 40), (250, 20, 20)).convert(mode)
    photo = decode(packed(picture, "PNG", icc_profile=profile_with_swapped_primaries()))
    red, green, blue = photo.image.getpixel((20, 20))
    assert blue > 240 and red < 30 and green < 30
    assert "sRGB" in photo.notes[0]
    assert "icc_profile" not in photo.image.info


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_broken_profile_is_ignored_with_a_note(mode):
    picture = Image.new(mode, (40, 40))
    expected = picture.convert("RGB").getpixel((0, 0))
    photo = decode(packed(picture, "TIFF", icc_profile=b"not a profile"))
    assert photo.image.getpixel((0, 0)) == expected
    assert len(photo.notes) == 1 and "profile" in photo.notes[0]


@pytest.mark.parametrize(("mode", "space"), [("CMYK", "sRGB"), ("RGB", "LAB"), ("L", "LAB")])
def test_a_profile_for_other_pixels_is_ignored_with_a_note(mode, space):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()
    picture = Image.new(mode, (40, 40))
    photo = decode(packed(picture, "TIFF", icc_profile=profile))
    assert photo.image.getpixel((0, 0)) == picture.convert("RGB").getpixel((0, 0))
    assert "profile" in photo.notes[0]


def minimal_profile(kind: bytes, space: bytes, pcs: bytes, tag: bytes, body: bytes) -> bytes:
    """An ICC profile of version 2.1 with a single tag."""
    header = struct.pack(">8xI4s4s4s12x4s28x3i", 0x02100000, kind, space, pcs, b"acsp", 63190, 65536, 54061)
    header = header.ljust(128, b"\0") + struct.pack(">I4sII", 1, tag, 144, len(body)) + body
    return struct.pack(">I", len(header)) + header[4:]


def test_cmyk_goes_through_its_own_profile():
    white, green, black = (255, 128, 128), (200, 40, 200), (0, 128, 128)  # Lab, 8 bits
    corners = [black if key else green if cyan else white for cyan in (0, 1) for _ in range(4) for key in (0, 1)]
    ramps = bytes(range(256))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = struct.pack(">4s4xBBBx", b"mft1", 4, 3, 2) + matrix + ramps * 4 + bytes(sum(corners, ())) + ramps * 3
    profile = minimal_profile(b"prtr", b"CMYK", b"Lab ", b"A2B0", table)
    picture = Image.new("CMYK", (64, 40))
    picture.paste((255, 0, 0, 0), (32, 0, 64, 40))
    picture.paste((0, 0, 0, 255), (0, 20, 32, 40))
    photo = decode(packed(picture, "TIFF", icc_profile=profile))
    red, green_value, blue = photo.image.getpixel((50, 20))
    assert green_value > 200 and red < 100 and blue < 100  # plain conversion gives (0, 255, 255)
    assert min(photo.image.getpixel((10, 5))) > 250
    assert max(photo.image.getpixel((10, 35))) < 5
    assert "sRGB" in photo.notes[0]


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_goes_through_its_own_profile(mode):
    linear = struct.pack(">4s4xI4x", b"curv", 0)
    profile = minimal_profile(b"mntr", b"GRAY", b"XYZ ", b"kTRC", linear)
    grey = Image.new("L", (40, 40), 55) if mode != "I;16" else Image.new("I;16", (40, 40), 55 * 257)
    picture = grey.convert("LA") if mode == "LA" else grey
    photo = decode(packed(picture, "PNG", icc_profile=profile))
    value = photo.image.getpixel((20, 20))
    assert max(value) - min(value) <= 1
    assert 125 <= value[0] <= 130  # linear light 55/255 is 128 in sRGB


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(kind):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    photo = decode(packed(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert photo.image.getpixel((20, 20)) == (255, 0, 0)
    assert len(photo.notes) == 1 and "3 frames" in photo.notes[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_cut_off_file_is_refused(kind):
    data = packed(noise(), kind)
    for end in sorted({1, 4, 20, 40, *range(60, len(data) - 40, len(data) // 15), len(data) - 40}):
        error = refusal(data[:end])
        assert end < 20 or "damaged" in error.message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_damage_never_gets_through_as_another_error(kind):
    data = packed(noise(40, 40), kind)
    generator = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(data)
        for position in generator.integers(0, min(len(data), 400), 4):
            broken[position] = generator.integers(0, 256)
        with contextlib.suppress(InputError):
            decode(bytes(broken))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, this is a text",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n",
    ],
)
def test_what_is_not_a_picture_is_called_so(data):
    assert "not a picture" in refusal(data).message


def test_a_zip_is_recognised_as_a_bundle():
    assert "bundle" in refusal(b"PK\x03\x04" + b"\0" * 40, "me.pfz").message


def test_heic_gets_the_hint_to_convert():
    error = refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40, "IMG_1")
    assert "HEIC" in error.message and "PNG or JPEG" in error.hint


@pytest.mark.parametrize("size", [(200_000, 200_000), (10_001, 10_000), (13_000, 10_000)])
def test_a_picture_above_the_limit_is_refused_from_its_header(size):
    assert "100 megapixels" in refusal(png_of_size(*size)).message


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_formats_whose_decoders_take_much_memory_have_a_limit_of_their_own(kind, monkeypatch):
    data = packed(noise(), kind)
    monkeypatch.setattr(opening, "MAX_HEAVY_PIXELS", 64 * 64)
    assert decode(data).image.size == (64, 64)
    monkeypatch.setattr(opening, "MAX_HEAVY_PIXELS", 64 * 64 - 1)
    assert kind in refusal(data).message
    assert decode(packed(noise(), "PNG")).image.size == (64, 64)


def test_a_file_of_too_many_bytes_is_refused_unopened(monkeypatch):
    data = packed(noise(), "PNG")
    monkeypatch.setattr(opening, "MAX_BYTES", len(data) - 1)
    assert "MB" in refusal(data).message


def test_the_limits_in_the_help_are_those_that_count():
    assert f"{opening.MAX_PIXELS // 10**6} megapixels" in PHOTO_LIMITS
    assert f"{opening.MAX_HEAVY_PIXELS // 10**6} as" in PHOTO_LIMITS


def test_the_shorter_side_is_at_least_32_pixels():
    assert "200x31" in refusal(packed(Image.new("RGB", (200, 31)), "PNG")).message
    assert decode(packed(Image.new("RGB", (200, 32)), "PNG")).image.size == (200, 32)


# Large pictures


def cut_out(image: Image.Image) -> Image.Image:
    """Opaque in the middle, transparent around it, with a soft edge between."""
    alpha = Image.new("L", image.size)
    alpha.paste(255, (60, 40, 240, 160))
    image.putalpha(alpha.resize((100, 60)).resize(image.size))
    return image


def see_through(mode: str) -> bytes:
    """A picture one of whose colours is transparent, without an alpha channel."""
    picture = Image.new(mode, (301, 203))
    for left in range(0, 300, 50):
        picture.paste((left // 2,) * 3 if mode == "RGB" else left // 50, (left, 0, left + 25, 200))
    if mode == "P":
        picture.putpalette([200, 30, 10, 20, 200, 60, 9, 9, 200, 250, 250, 10, 90, 90, 90, 0, 0, 0])
    return packed(picture, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)


def large(kind: str) -> bytes:
    """A picture of 301 x 203 pixels of each kind that is halved in its own way."""
    picture, profile = scene(301, 203), profile_with_swapped_primaries()
    ramp = np.tile(np.linspace(0, 65535, 301).round().astype(np.uint16), (203, 1))
    return {
        "JPEG": lambda: packed(picture, "JPEG", quality=95),
        "progressive JPEG": lambda: packed(picture, "JPEG", quality=95, progressive=True),
        "grey JPEG": lambda: packed(picture.convert("L"), "JPEG", quality=95),
        "CMYK JPEG": lambda: packed(picture.convert("CMYK"), "JPEG", quality=95),
        "JPEG with a profile": lambda: packed(
            picture, "JPEG", quality=95, icc_profile=profile_with_swapped_primaries()
        ),
        "PNG": lambda: packed(picture, "PNG"),
        "PNG with a profile": lambda: packed(picture, "PNG", icc_profile=profile),
        "transparent PNG": lambda: packed(cut_out(picture), "PNG"),
        "transparent grey PNG": lambda: packed(cut_out(picture.convert("L").convert("LA")), "PNG"),
        "16-bit PNG": lambda: packed(Image.fromarray(ramp), "PNG"),
        "black and white PNG": lambda: packed(picture.convert("1"), "PNG"),
        "PNG with a transparent colour": lambda: see_through("RGB"),
        "PNG with a transparent grey": lambda: see_through("L"),
        "PNG with a transparent entry": lambda: see_through("P"),
        "GIF": lambda: packed(picture, "GIF"),
        "WebP": lambda: packed(cut_out(picture), "WEBP", lossless=True),
        "TIFF": lambda: packed(picture.convert("CMYK"), "TIFF"),
    }[kind]()


@pytest.mark.parametrize("as_mask", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        *("JPEG", "progressive JPEG", "grey JPEG", "CMYK JPEG", "JPEG with a profile", "PNG", "PNG with a profile"),
        *("transparent PNG", "transparent grey PNG", "16-bit PNG", "black and white PNG", "GIF", "WebP", "TIFF"),
        *("PNG with a transparent colour", "PNG with a transparent grey", "PNG with a transparent entry"),
    ],
)
def test_a_large_picture_is_halved_to_what_the_whole_one_shows(kind, as_mask, monkeypatch):
    data = large(kind)
    whole = images.decode_photo(data, "photo", as_mask)
    monkeypatch.setattr(photos, "ORDINARY_PIXELS", 301 * 203 - 1)
    monkeypatch.setattr(photos, "_BAND", 38)
    half = images.decode_photo(data, "photo", as_mask)
    assert (whole.image.size, half.image.size) == ((301, 203), (151, 102))
    assert half.size == whole.size == (301, 203)
    assert (half.sha256, half.notes) == (whole.sha256, whole.notes)
    apart = np.abs(pixels(half.image) - pixels(whole.image.reduce(2)))
    assert apart.max() <= 12 and apart.mean() < 0.8


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_a_large_picture_is_upright_too(orientation, kind, monkeypatch):
    monkeypatch.setattr(photos, "ORDINARY_PIXELS", 1000)
    turn = STORED_AS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene() if turn is None else scene().transpose(turn)
    photo = decode(packed(stored, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {})))
    assert (photo.size, photo.image.size) == ((64, 48), (32, 24))
    assert np.abs(pixels(photo.image) - pixels(scene().reduce(2))).max() < 12


def test_a_picture_of_ordinary_size_keeps_every_pixel(monkeypatch):
    monkeypatch.setattr(photos, "ORDINARY_PIXELS", 64 * 64)
    photo = decode(packed(noise(), "PNG"))
    assert photo.size == photo.image.size
    assert np.array_equal(pixels(photo.image), pixels(noise()))


# Cropping


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference data is not here")
def test_crop_square_is_the_authors_preprocessing():
    source = REFERENCE / "image_A.png"
    photo = decode(source.read_bytes(), source.name)
    expected = Image.open(source.with_name(f"{source.stem}_512.png"))
    assert np.array_equal(pixels(images.crop_square(photo.image, 512)), pixels(expected))


@pytest.mark.parametrize("size", [(41, 32), (32, 41), (40, 32)])
def test_crop_square_rounds_its_offset_down(size):
    picture = noise(*size)
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    expected = pixels(picture)[top : top + 32, left : left + 32]
    assert np.array_equal(pixels(images.crop_square(picture, 32)), expected)


def test_crop_square_gives_rgb_of_the_size_asked_for():
    square = images.crop_square(Image.new("L", (100, 60)), 128)
    assert (square.mode, square.size) == ("RGB", (128, 128))


# Contact sheets

RED, GREEN, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue"))


def first_row_with(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int(np.argwhere((pixels(sheet) == colour).all(axis=-1).any(axis=1))[0][0])


def test_references_come_before_the_prompts_in_order():
    sheet = images.contact_sheet([("one", [GREEN]), ("two", [BLUE])], [("me", RED)], cell=64)
    rows = [first_row_with(sheet, colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert rows == sorted(rows) and len(set(rows)) == 3


def test_the_sheet_grows_with_its_rows_and_columns():
    def sheet(rows: int, columns: int, references: int = 1) -> tuple[int, int]:
        return images.contact_sheet([("S*", [GREEN] * columns)] * rows, [("me", RED)] * references, 64).size

    assert sheet(2, 1)[0] == sheet(1, 1)[0] and sheet(2, 1)[1] >= sheet(1, 1)[1] + 64
    assert sheet(1, 3)[0] >= sheet(1, 1)[0] + 128 and sheet(1, 3)[1] == sheet(1, 1)[1]
    assert sheet(1, 4, references=9)[1] > sheet(1, 4, references=4)[1]


@pytest.mark.parametrize("what", ["prompt", "caption", "title", "head"])
def test_every_text_is_drawn(what):
    def sheet(**text: str) -> np.ndarray:
        text = {"prompt": "S* on a beach", "caption": "me.png", "title": "seed 1", "head": "one"} | text
        rows, references = [(text["prompt"], [GREEN])], [(text["caption"], RED)]
        return pixels(images.contact_sheet(rows, references, 64, text["title"], [text["head"]]))

    assert sheet().shape == sheet(**{what: "abc"}).shape
    assert (sheet() != sheet(**{what: "abc"})).any()


def test_a_long_label_stays_beside_its_row():
    pictures = [("S*", [GREEN]), ("", [GREEN])]
    short = pixels(images.contact_sheet(pictures, [], 128))
    words = pixels(images.contact_sheet([("S* " + "word " * 500, [GREEN]), pictures[1]], [], 128))
    letters = pixels(images.contact_sheet([("x" * 5000, [GREEN]), pictures[1]], [], 128))
    middle = short.shape[0] // 2
    for long in (words, letters):
        assert long.shape == short.shape
        assert (long[:middle] != short[:middle]).any()
        assert np.array_equal(long[middle:], short[middle:])
        assert ((long == (0, 255, 0)).all(axis=-1) == (short == (0, 255, 0)).all(axis=-1)).all()


@pytest.mark.parametrize("text", ["日本語の写真", "кириллица", "🙂 S*", "a\nb\t\0c", "\udcff bad bytes", "עברית"])
def test_no_character_crashes_the_sheet(text):
    images.contact_sheet([(text, [GREEN])], [(text, RED)], 64, title=text)


def test_an_accented_letter_is_drawn_as_its_base_letter():
    sheets = [images.contact_sheet([(text, [GREEN])], [], 64) for text in ("cafe - noel", "café — noël")]
    assert sheets[0].tobytes() == sheets[1].tobytes()


@pytest.mark.parametrize(("size", "shown"), [((200, 100), (128, 64)), ((30, 60), (64, 128)), ((4000, 2), (128, 1))])
def test_a_picture_keeps_its_aspect_in_the_cell(size, shown):
    sheet = images.contact_sheet([("S*", [Image.new("RGB", size, "lime")])], [], 128)
    found = np.argwhere((pixels(sheet) == (0, 255, 0)).all(axis=-1))
    height, width = found.max(axis=0) - found.min(axis=0) + 1
    assert (width, height) == shown


def test_an_empty_sheet_is_still_a_picture():
    assert min(images.contact_sheet([], []).size) > 0
    assert images.contact_sheet([], [("me", RED)]).height > 256


# Formats


def test_what_is_written_is_what_the_name_says():
    for suffix in images.PICTURES:
        with Image.open(io.BytesIO(images.encode_picture(f"a{suffix.upper()}", noise(), "p", {}))) as image:
            assert Image.registered_extensions()[suffix] == image.format
    for suffix in images.ANIMATIONS:
        data = images.encode_animation(f"a{suffix.upper()}", [RED, GREEN, BLUE], 5, "p", {})
        with Image.open(io.BytesIO(data)) as image:
            assert (Image.registered_extensions()[suffix], 4) == (image.format, image.n_frames)
    assert images.encode_picture("-", noise(), "p", {}) == images.encode_png(noise(), "p", {})


def test_the_colours_of_small_areas_outlive_a_gif():
    picture = Image.blend(scene(256, 256), Image.new("RGB", (256, 256), "tan"), 0.6)
    for left, colour in ((100, "white"), (112, "black"), (124, "blue")):
        picture.paste(colour, (left, 100, left + 5, 105))
    with Image.open(
        io.BytesIO(images.encode_animation("way.gif", [picture, RED.resize((256, 256))], 4, "", {}))
    ) as gif:
        assert np.abs(pixels(gif.convert("RGB")) - pixels(picture)).max() < 30


def test_a_new_format_is_one_line_of_the_table(monkeypatch):
    with pytest.raises(UsageError, match=r"'a\.bmp' would be a \.bmp file") as caught:
        check_suffix("a.bmp", images.PICTURES)
    assert ".png" in caught.value.hint
    monkeypatch.setitem(images.PICTURES, ".bmp", lambda image, parameters, record: packed(image, "BMP"))
    check_suffix("a.bmp", images.PICTURES)
    assert images.encode_picture("a.bmp", noise(), "p", {}) == packed(noise(), "BMP")
    with pytest.raises(UsageError) as caught:
        check_suffix("a.tiff", images.PICTURES)
    assert ".png or .bmp" in caught.value.hint


# Records in PNG files

RECORD = {"prompt": 'S* "на" пляже,\n日本 🙂', "seed": 7, "gamma": 0.6, "nested": {"list": [1, None, True]}}


@pytest.mark.parametrize("parameters", ["plain", "two\nlines: a, b", "café", "日本語 🙂\nSteps: 5"])
def test_a_record_comes_back_from_the_png(parameters):
    data = images.encode_png(noise(), parameters, RECORD)
    assert images.read_record(data, "out.png") == (parameters, RECORD)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(pixels(image), pixels(noise()))
        assert image.text["parameters"] == parameters
        assert json.loads(image.text["profusion"]) == RECORD
    assert b"iTXtprofusion\0\0\0" in data


@pytest.mark.parametrize("suffix", images.ANIMATIONS)
@pytest.mark.parametrize("parameters", ["", "two\nlines: a, b", "日本語 🙂\nprofusion: {}"])
def test_a_record_comes_back_from_an_animation(parameters, suffix):
    record = {**RECORD, "long": "x" * 70_000}
    data = images.encode_animation(f"way{suffix}", [RED, GREEN, BLUE], 4, parameters, record)
    assert images.read_record(data, "way") == (parameters, record)
    assert data == images.encode_animation(f"way{suffix}", [RED, GREEN, BLUE], 4, parameters, record)
    with pytest.raises(InputError, match="no record"):
        images.read_record(packed(RED, Image.registered_extensions()[suffix]), "way")


def test_other_tools_find_the_parameters_of_a_webp():
    data = images.encode_animation("way.webp", [RED, GREEN], 4, "S* café\nSteps: 5", {})
    with Image.open(io.BytesIO(data)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + "S* café\nSteps: 5".encode("utf-16-be")


def animation_with(kind: str, record: bytes) -> bytes:
    """An animation whose place for the record holds other bytes."""
    if kind == "GIF":
        return packed(RED, kind, comment=b"parameters\nprofusion: " + record)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = b"profusion\0" + record
    return packed(RED, kind, exif=exif)


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
@pytest.mark.parametrize(
    ("record", "words"),
    [
        (b"{", "JSON"),
        (b"[1]", "JSON object"),
        (b"[" * 100_000, "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "above the limit"),
    ],
    ids=["cut off", "list", "deep", "no text", "long"],
)
def test_an_animation_without_a_usable_record_is_refused(kind, record, words):
    with silent(), pytest.raises(InputError, match=words) as caught:
        images.read_record(animation_with(kind, record), "way")
    assert "way" in caught.value.message


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_damage_in_an_animation_is_an_input_error(kind):
    data = animation_with(kind, b"{}")
    generator = np.random.default_rng(2)
    for _ in range(100):
        broken = bytearray(data)
        for position in generator.integers(0, len(data), 4):
            broken[position] = generator.integers(0, 256)
        with silent(), contextlib.suppress(InputError):
            images.read_record(bytes(broken), "way")


def test_the_same_picture_gives_the_same_bytes_whatever_it_carries():
    picture = noise()
    picture.info.update(icc_profile=b"private", transparency=(0, 0, 0), dpi=(72, 72), comment="private")
    data = images.encode_png(picture, "p", RECORD)
    assert data == images.encode_png(noise(), "p", RECORD)
    assert picture.info["comment"] == "private"


def test_undecodable_bytes_in_a_prompt_do_not_stop_the_writing():
    data = images.encode_png(noise(), "S* \udcff", {"prompt": "S* \udcff"})
    assert images.read_record(data, "out.png") == ("S* ?", {"prompt": "S* ?"})


def png_with(**texts: str) -> bytes:
    info = PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    return packed(noise(), "PNG", pnginfo=info)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (packed(noise(), "JPEG"), "not a picture of a known format"),
        (b"text", "not a picture of a known format"),
        (png_with(), "no record"),
        (png_with(parameters="Steps: 5"), "no record"),
        (png_with(profusion="{"), "JSON"),
        (png_with(profusion="[1]"), "JSON object"),
        (png_with(profusion="[" * 100_000), "JSON"),
        (png_with(profusion=f'{{"a": {"1" * 10_000}}}'), "JSON"),
        (png_with(profusion=f'{{"a": "{"x" * (1 << 20)}"}}'), "above the limit"),
        (png_of_size(20_000, 20_000), "100 megapixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_png_without_a_usable_record_is_refused(data, words):
    with silent(), pytest.raises(InputError, match=words) as caught:
        images.read_record(data, "out.png")
    assert "out.png" in caught.value.message


def test_a_compressed_text_bomb_is_refused():
    info = PngInfo()
    info.add_itxt("profusion", "x" * (1 << 24), zip=True)
    with pytest.raises(InputError, match="damaged"):
        images.read_record(packed(noise(), "PNG", pnginfo=info), "out.png")


def test_a_damaged_png_is_refused_wherever_the_damage_is():
    data = images.encode_png(noise(), "parameters", RECORD)
    for position in range(8, len(data), len(data) // 40):
        broken = bytearray(data)
        broken[position] ^= 0x55
        with pytest.raises(InputError):
            images.read_record(bytes(broken), "out.png")
        with pytest.raises(InputError):
            images.read_record(data[:position], "out.png")


def test_parameters_text_is_what_other_tools_read():
    settings = {
        "Steps": 50,
        "Sampler": "Fusion, m=1",
        "Model": "a:b",
        "Note": 'x\n"y"',
        "Size": "512x512",
        "Eta": None,
    }
    assert images.parameters_text("S* on a beach", "blurry, dark", settings) == (
        "S* on a beach\nNegative prompt: blurry, dark\n"
        'Steps: 50, Sampler: "Fusion, m=1", Model: "a:b", Note: "x\\n\\"y\\"", Size: 512x512'
    )
    assert images.parameters_text("S*", "", {"Steps": 5}) == "S*\nSteps: 5"
