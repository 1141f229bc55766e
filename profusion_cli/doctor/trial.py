"""Whether the shipped face world draws: a real picture, that its judge of identity knows for the photo's person."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli.errors import DeviceError
from profusion_cli.listener import Listener
from profusion_cli.presets import local_path

PRESET = "faceworld"
PERSON = "905"
STEPS = 8
LEAST, LEAD = 0.5, 0.2
"""How similar the picture must be to the photo, and by how much more than to anybody else: 0.84 and 0.59 in float32;
noise reaches 0.16 with this person."""


def draw_trial(device: str, dtype: str, listener: Listener) -> dict[str, Any]:
    """Draw one person of the face world, untuned and in few steps, and judge the picture.

    Returns:
        `identity`: similarity to the photo, `others`: the highest one to the photo of anybody else, both in [-1, 1];
        and the seconds taken.

    Raises:
        ProfusionError: what `draw` met, or a picture of nobody.
    """
    from profusion_cli.faceworld.judges import Judges
    from profusion_cli.jobs.configuration import load_config
    from profusion_cli.jobs.pictures import draw
    from profusion_cli.jobs.subject import make_subject

    started = time.monotonic()
    faces = {path.stem: path for path in sorted(_folder("faces").glob("*.png"))}
    photos = {name: Image.open(path).convert("RGB") for name, path in faces.items()}
    settings = {"finetune.steps": 0, "sample.steps": STEPS, "device": device, "dtype": dtype}
    config = load_config(PRESET, settings)
    subject = make_subject([photos[PERSON]], config, augment=False, listener=listener)
    (picture,) = draw([subject], ["S*"], config, listener=listener)
    seen, *known = Judges(_folder("judges")).embeddings([picture.image, *photos.values()])
    likeness = dict(zip(photos, (float(seen @ one) for one in known), strict=True))
    return judged(likeness.pop(PERSON), max(likeness.values()), time.monotonic() - started)


def judged(identity: float, others: float, seconds: float) -> dict[str, Any]:
    """The result of a trial.

    Raises:
        DeviceError: the picture is not of the photo's person.
    """
    if not (identity >= LEAST and identity - others >= LEAD):
        raise DeviceError(
            f"The face world draws nobody: its picture has a similarity of {identity:.2f} to the photo, and of "
            f"{others:.2f} to another one.",
            "Run it again with --device cpu --dtype float32; if that is well, the device computes wrongly.",
        )
    return {"identity": round(identity, 3), "others": round(others, 3), "seconds": round(seconds, 1)}


def _folder(name: str) -> Path:
    return Path(local_path(f"shipped:{PRESET}")) / name
