"""Real bundles and pictures, and how they are damaged: what the readers must bear.

A mutant depends on its seed and on a `random.Random` alone, so that a number stands for it: `tests.fuzz` counts
through them, and hypothesis draws them in `tests/test_fuzz.py`.
"""

from __future__ import annotations

import io
import json
import math
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.numpy
import yaml
from PIL import Image, PngImagePlugin, features

from profusion_cli.bundle import Bundle, make_bundle
from profusion_cli.bundle.container import write_entries
from profusion_cli.bundle.kinds import FILES
from profusion_cli.bundle.manifest import MANIFEST, PREVIEW
from profusion_cli.files import sha256_of
from profusion_cli.images import encode_picture
from profusion_cli.images.formats import ANIMATIONS, PICTURES, encode_animation

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    100,
    2000,
    20000,
    20_000_000,
    2**31 - 1,
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
)
FLOATS = (".nan", ".inf", "-.inf", "1.0e+308", "-0.0", "1.0e-320", "0.5", "1e5", "1e-05")
TEXTS = (
    "",
    "S*",
    "~",
    "None",
    "\x1b[31m",
    "\x9b0m",
    "\u202e",
    "é" * 300,
    "../../etc/passwd",
    "/dev/zero",
    "CrossAttnDownBlock2D",
)
BARE = (
    "null",
    "true",
    "false",
    "2024-01-01",
    "0x7fffffff",
    "0o17",
    "1:30:00",
    "!!python/object:os.system x",
    "&a 1",
    "*a",
    "<<",
)
DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "F64": 8, "BOOL": 1}
PROMPTNET_DESCRIPTION = {
    "unet": {
        "in_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "block_out_channels": [4],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "norm_eps": 0.00001,
        "cross_attention_dim": 4,
        "attention_head_dim": 2,
        "use_linear_projection": True,
    },
    "image_token_dim": 6,
    "embedding_dim": 8,
    "region_kernel_size": 1,
    "region_proj_channels": 2,
}
"""The smallest PromptNet that there is, so that a million of them is a matter of minutes."""
CHANGES = {"conv_in.weight": (4, 4, 3, 3), "conv_in.bias": (4,)}
"""Shapes of the parameters of the UNet that the small subject changes."""
RECORD = {
    "tool": {"name": "profusion", "version": "0"},
    "prompt": "S* on a beach",
    "text": "a person on a beach",
    "seed": 1,
    "base": {"id": "some/base", "revision": None, "fingerprint": {"unet": "0123456789abcdef"}},
    "subjects": [
        {
            "name": "me.pfz",
            "sha256": "ab" * 32,
            "inputs": [{"kind": "photo", "name": "me.png", "sha256": "cd" * 32}],
            "parents": ["ef" * 32],
        }
    ],
    "sample": {"steps": 1},
}
"""What a picture remembers of its making."""


# --- bundles ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seed:
    """A whole bundle, taken apart."""

    data: bytes
    text: str
    files: dict[str, bytes]
    preview: bytes | None

    @cached_property
    def spans(self) -> list[tuple[int, int, bool]]:
        """Where the values of the manifest's text are, and whether each is a block of lines."""
        found: list[tuple[int, int, bool]] = []
        nodes = [yaml.compose(self.text, Loader=yaml.CSafeLoader)]
        while nodes:
            node = nodes.pop()
            block = isinstance(node, yaml.CollectionNode) and not node.flow_style
            found.append((node.start_mark.index, node.end_mark.index, block))
            if isinstance(node, yaml.MappingNode):
                nodes += [one for pair in node.value for one in pair]
            elif isinstance(node, yaml.SequenceNode):
                nodes += node.value
        return [span for span in found if span[0] > 0]

    @cached_property
    def listed(self) -> dict[str, tuple[int, int]]:
        """Where the manifest describes each file of tensors."""
        tree = yaml.compose(self.text, Loader=yaml.CSafeLoader)
        (files,) = (value for key, value in tree.value if key.value == "files")
        return {key.value: (value.start_mark.index, value.end_mark.index) for key, value in files.value}

    @cached_property
    def headers(self) -> dict[str, tuple[dict[str, Any], bytes]]:
        """The header of each file of tensors, and what stands behind it."""
        apart = {}
        for name, blob in self.files.items():
            (length,) = struct.unpack_from("<Q", blob)
            apart[name] = json.loads(blob[8 : 8 + length]), blob[8 + length :]
        return apart


def take_apart(bundle: Bundle) -> Seed:
    """A seed that is this bundle."""
    data = bytes(bundle.data)
    start = 30 + struct.unpack_from("<H", data, 26)[0] + struct.unpack_from("<H", data, 28)[0]
    (size,) = struct.unpack_from("<L", data, 22)
    text = data[start : start + size].decode()
    return Seed(data, text, {name: bytes(bundle.read(name)) for name in bundle.files}, bundle.preview)


def put_together(text: bytes, files: Mapping[str, bytes], preview: bytes | None) -> bytes:
    """A ZIP whose own checksums fit, whatever is in it."""
    archive = io.BytesIO()
    last = {} if preview is None else {PREVIEW: preview}
    write_entries(archive, {MANIFEST: text} | dict(files) | last)
    return archive.getvalue()


def small_bundles(real: Bundle) -> list[Seed]:
    """Bundles of every kind with the manifest of a real subject, and hardly any weights.

    Args:
        real: a subject on PromptNet.
    """
    import torch

    from profusion_cli.runtime.architecture import PromptNetConfig
    from profusion_cli.runtime.promptnet import PromptNet

    with torch.device("meta"):
        shapes = {
            name: one.shape for name, one in PromptNet(PromptNetConfig(**PROMPTNET_DESCRIPTION)).state_dict().items()
        }
    rng = np.random.default_rng(0)

    def packed(shapes: Mapping[str, Sequence[int]], dtype: str = "float32") -> bytes:
        whole = {name: rng.integers(0, 9, tuple(shape)).astype(dtype) for name, shape in shapes.items()}
        return safetensors.numpy.save(whole)

    kept = ("base", "config", "seed", "inputs", "parents", "pictures", "loss", "s_star", "promptnet_source")
    manifest = {key: real.manifest[key] for key in kept if key in real.manifest}
    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")
    promptnet = {"promptnet.safetensors": packed(shapes, "float16")}
    views = {"latents_mean": (1, 4, 8, 8), "latents_std": (1, 4, 8, 8), "image_tokens": (1, 3, 6)}
    pictures = {"original": (3, 4, 4), "original_mask": (4, 4), "pictures": (2, 3, 4, 4), "masks": (2, 4, 4)}
    described = manifest | {"promptnet": PROMPTNET_DESCRIPTION}
    made = [
        make_bundle(
            described | {"kind": "subject"},
            promptnet | {"views.safetensors": packed(views), "unet.safetensors": packed(CHANGES)},
            picture.getvalue(),
        ),
        make_bundle(described | {"kind": "promptnet"}, promptnet),
        make_bundle(manifest | {"kind": "subject"}, {"word.safetensors": packed({"embedding": (2, 8)})}),
        make_bundle(
            manifest | {"kind": "images"}, {"images.safetensors": packed(pictures, "uint8")}, picture.getvalue()
        ),
    ]
    return [take_apart(bundle) for bundle in made]


def mutate_bundle(seed: Seed, rng: random.Random) -> bytes:
    """The bundle with something wrong with it, most often behind checksums that fit."""
    way = rng.random()
    if way < 0.3:
        return mutate_bytes(seed.data, rng)
    edits: list[tuple[int, int, str]] = []
    files = seed.files
    if way < 0.6 or rng.random() < 0.1:
        edits += [_edit_value(seed, rng) for _ in range(1 + (rng.random() < 0.2))]
    elif way < 0.75:
        text = mutate_bytes(seed.text.encode(), rng)
        return put_together(text, files, seed.preview)
    if way >= 0.75:
        file = rng.choice(list(files))
        blob, tensors = _mutate_tensors(*seed.headers[file], rng)
        files = files | {file: blob}
        entry = {"sha256": sha256_of(blob), "size": len(blob), "tensors": tensors}
        edits.append((*seed.listed[file], f"{json.dumps(entry)}\n"))
        if rng.random() < 0.02:
            files = {rng.choice(FILES) if name == file else name: one for name, one in files.items()}
    data = put_together(_apply(seed.text, edits).encode("utf-8", "surrogatepass"), files, seed.preview)
    return mutate_bytes(data, rng) if rng.random() < 0.02 else data


def _apply(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _edit_value(seed: Seed, rng: random.Random) -> tuple[int, int, str]:
    """Another value, or another key, in the manifest's text."""
    start, end, block = rng.choice(seed.spans)
    old = seed.text[start:end]
    if rng.random() < 0.1:  # something of the manifest in another place
        other = rng.choice(seed.spans)
        new = seed.text[other[0] : other[1]]
    elif rng.random() < 0.2 and old.strip().lstrip("-").isdigit():
        new = str(rng.choice((int(old) + 1, int(old) - 1, int(old) * 2, int(old) * 1000, -int(old))))
    else:
        new = _value(rng, 0)
    return start, end, f" {new}\n" if block else new


def _value(rng: random.Random, depth: int) -> str:
    """A value in YAML's flow style."""
    way = rng.randrange(10 if depth < 3 else 8)
    if way < 3:
        return str(rng.choice(NUMBERS))
    if way < 5:
        return rng.choice(FLOATS)
    if way < 7:
        return json.dumps(rng.choice(TEXTS))
    if way < 8:
        return rng.choice(BARE)
    inner = [_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 1, 2, 4, 40 if depth == 0 else 3)))]
    if way == 8:
        return f"[{', '.join(inner)}]"
    return f"{{{', '.join(f'k{number}: {value}' for number, value in enumerate(inner))}}}"


def _mutate_tensors(header: Mapping[str, Any], data: bytes, rng: random.Random) -> tuple[bytes, dict[str, Any]]:
    """A file of tensors with another layout, and what a manifest says of it."""
    table = {name: dict(entry) for name, entry in header.items() if name != "__metadata__"}
    pieces = {name: data[slice(*entry["data_offsets"])] for name, entry in table.items()}
    name = rng.choice(list(table))
    entry = table[name]
    way = rng.randrange(9)
    if way == 0:
        entry["dtype"] = rng.choice(list(DTYPES))
    elif way == 1:
        entry["shape"] = _shape(entry["shape"], rng)
    elif way == 2:
        table[rng.choice((f"{name}.more", "", "a" * 300, "\x1b[31m", "é", "__metadata__", name.upper()))] = table.pop(
            name
        )
    elif way == 3:
        del table[name]
    elif way == 4:
        table[f"{name}2"] = dict(entry)
    elif way == 5:  # numbers that are not finite, or any at all
        pieces[name] = rng.randbytes(len(pieces[name]))
    elif way == 6:
        other = rng.choice(list(table))
        entry["shape"], table[other]["shape"] = table[other]["shape"], entry["shape"]
    whole = way < 7 and rng.random() < 0.9
    if whole:  # the bytes fit the shapes, as far as that is bearable
        position = 0
        for key, one in table.items():
            size = math.prod(one["shape"]) * DTYPES.get(one["dtype"], 1)
            if not 0 <= size <= 1 << 16:
                size = 0
            piece = pieces.get(key, pieces.get(name, b""))
            pieces[key] = (piece + bytes(size))[:size]
            one["data_offsets"] = [position, position + size]
            position += size
        data = b"".join(pieces[key] for key in table)
    elif way == 7:
        entry["data_offsets"] = rng.choice(([0, 0], [-1, 4], [2**63, 2**64], [4, 0], [0], "0", None, [0.0, 4.0]))
    described = {key: {"dtype": one["dtype"], "shape": one["shape"]} for key, one in table.items()}
    text = json.dumps(table).encode()
    if way == 8:
        text = mutate_bytes(text, rng)
    length = len(text) if rng.random() < 0.99 else rng.choice((0, max(len(text) - 1, 0), len(text) + 1, 2**24, 2**63))
    return struct.pack("<Q", length) + text + data, described


def _shape(shape: Sequence[int], rng: random.Random) -> list[Any]:
    new: list[Any] = list(shape) or [1]
    at = rng.randrange(len(new))
    way = rng.randrange(5)
    if way == 0:
        new[at] = rng.choice((0, 1, new[at] + 1, new[at] * 2))
    elif way == 1:
        new.insert(at, rng.choice((0, 1, 2)))
    elif way == 2:
        del new[at]
    elif way == 3:
        new[at] = rng.choice((*NUMBERS[8:16], -1))
        new.append(0)
    else:
        rng.shuffle(new)
    return new


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, put in or repeated; or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(out)) if out else 0
        way = rng.randrange(7)
        if way < 2 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif way == 2 and out:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif way == 3:
            out[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif way == 4:
            del out[at : at + rng.randrange(1, 40)]
        elif way == 5:
            other = rng.randrange(len(out)) if out else 0
            out[at : at + 16] = out[other : other + 16]
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


# --- pictures ---------------------------------------------------------------------------------


def pictures() -> list[bytes]:
    """Small pictures of every format and many kinds of pixels, as Pillow writes them."""
    y, x = np.mgrid[:40, :48]
    rgb = Image.fromarray(np.stack([x * 5, y * 6, (x * y) % 256], axis=-1).astype(np.uint8))
    deep = Image.fromarray((x * y * 30).astype(np.uint16))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(((x + y) * 2).astype(np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a", zip=True)
    profile = {"icc_profile": _profile()}
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    made = [
        *(_saved(rgb.convert(mode), "PNG") for mode in ("RGB", "RGBA", "P", "L", "LA", "1")),
        *(_saved(deep, "PNG"), _saved(rgb, "PNG", pnginfo=text, **profile)),
        *(encode_picture(f"x{suffix}", rgb, "a\nSteps: 1", RECORD) for suffix in PICTURES),
        *(encode_animation(f"x{suffix}", [rgb, deep.convert("RGB")], 5, "a", RECORD) for suffix in ANIMATIONS),
        *(_saved(rgb, "JPEG", exif=exif, **profile), _saved(rgb, "JPEG", progressive=True)),
        *(_saved(rgb.convert(mode), "JPEG") for mode in ("L", "CMYK")),
        *(_saved(rgb.convert("P"), "GIF", **frames), _saved(rgb, "BMP"), _saved(rgb.convert("L"), "BMP")),
        *(_saved(rgb, "PPM"), _saved(rgb.convert("1"), "PPM"), _saved(deep, "TIFF")),
        *(_saved(rgb, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
        *(
            _saved(alpha, "WEBP", exif=exif),
            _saved(rgb, "WEBP", lossless=True, **profile),
            _saved(rgb, "WEBP", **frames),
        ),
    ]
    if features.check("jpg_2000"):
        made += [_saved(rgb, "JPEG2000"), _saved(alpha, "JPEG2000")]
    if features.check("avif"):
        made += [_saved(rgb, "AVIF", speed=10), _saved(alpha, "AVIF", speed=10)]
    return made


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def mutate_picture(seed: bytes, rng: random.Random) -> bytes:
    """The picture with something wrong with it; of a PNG often behind checksums that fit."""
    if not seed.startswith(b"\x89PNG") or rng.random() < 0.3:
        return mutate_bytes(seed, rng)
    chunks = list(_chunks(seed))
    at = rng.randrange(len(chunks))
    kind, content = chunks[at]
    way = rng.randrange(6)
    if way < 4:
        chunks[at] = kind, mutate_bytes(content, rng) if content else rng.randbytes(3)
    elif way == 4:
        chunks.insert(rng.randrange(len(chunks)), (kind, content))
    else:
        del chunks[at]
    return seed[:8] + b"".join(
        struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">L", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found
