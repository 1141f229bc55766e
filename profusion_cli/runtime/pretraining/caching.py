"""The cache of encoded pictures, filled before the first step: its size told first, its pictures in batches."""

from __future__ import annotations

import signal
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.filesize import decimal

from profusion_cli.errors import Interrupted, OutputError
from profusion_cli.files import make_folder
from profusion_cli.listener import Listener
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.downloads import free_space
from profusion_cli.runtime.pixels import image_token_count
from profusion_cli.runtime.pretraining.encodings import Encodings

BLOCK = 4096
"""Bytes that a file system gives to a file at a time."""
HEADER = 512
"""Bytes of a safetensors file of three tensors before them, at most."""
OTHER_PLACE = (
    "Free some space, name a folder on another disk with --cache, or encode pictures in each epoch: --no-cache."
)


def picture_bytes(base: BaseModel) -> int:
    """What an encoded picture takes on the disk: mean and deviation of its latents, and its image tokens."""
    side, vision = base.config.resolution, base.vision.config
    height, width = base.latent_size(side, side)
    moments = 2 * base.vae.config.latent_channels * height * width
    tokens = image_token_count(vision) * vision.hidden_size
    return -(-(2 * (moments + tokens) + HEADER) // BLOCK) * BLOCK


def check_room(folder: Path, missing: int, used: int, size: int, listener: Listener) -> None:
    """Tell what the cache will take.

    Args:
        folder: of the cache.
        missing: pictures that are not in it.
        used: pictures that the training uses.
        size: of one, in bytes.
        listener: who hears of it.

    Raises:
        OutputError: the disk has less room.
    """
    if missing == 0:
        listener.note(f"All {used:,} pictures are in the cache '{folder}' already.")
        return
    there = f"; {used - missing:,} of {used:,} pictures are there already" if missing < used else ""
    needed, free = missing * size, free_space(folder)
    listener.note(
        f"The cache will take {decimal(needed)} in '{folder}': {missing:,} encoded pictures of {decimal(size)} "
        f"each{there}. The disk has {decimal(free)} free. It may be removed when the training is done."
    )
    if needed > free:
        raise OutputError(
            f"The cache of encoded pictures needs {decimal(needed)} in '{folder}', and {decimal(free)} are free.",
            OTHER_PLACE,
        )


def fill(encodings: Encodings, used: int, accelerator: Accelerator, listener: Listener) -> int:
    """Encode the pictures that the cache lacks, in batches shared out over the processes.

    A batch of which any is missing is encoded as a whole, so that where an interrupt falls changes nothing.

    Args:
        encodings: of a data set, with a folder.
        used: so many of the pictures, by the order of `encodings`, are used.
        accelerator: of the training.
        listener: who hears of it.

    Returns:
        How many pictures were missing, for all processes.

    Raises:
        OutputError: the cache does not fit on the disk, or cannot be written.
        InputError: a picture cannot be read any more.
        Interrupted: what is encoded is kept.
    """
    rank, processes, folder = accelerator.process_index, accelerator.num_processes, encodings.folder
    assert folder is not None
    make_folder(folder, "cache folder", "Give another --cache, or --no-cache.")
    cached = encodings.cached()
    if processes > 1:  # before any of them writes there
        cached = set.intersection(*gather_object([cached]))
    groups = encodings.groups[: -(-used // encodings.at_once)]
    wanted = {group: [index for index in group if index not in cached] for group in groups}
    lacking = [group for group in groups if wanted[group]]
    missing = sum(map(len, wanted.values()))
    check_room(folder, missing, sum(map(len, groups)), picture_bytes(encodings.base), listener)
    own = lacking[rank::processes]
    done = 0
    try:
        with listener.progress("Encoding pictures", sum(len(wanted[group]) for group in own)) as progress:
            for group, squares in zip(own, encodings.read_groups(own), strict=True):
                encodings.write(group, wanted[group], squares)
                done += len(wanted[group])
                progress(done, "")
    except KeyboardInterrupt:
        raise Interrupted(
            signal.SIGINT,
            f"What is encoded is kept in '{folder}', and the same command goes on from there.",
        ) from None
    if processes > 1:
        accelerator.wait_for_everyone()
    encodings.base.release("vae", "vision")
    return missing
