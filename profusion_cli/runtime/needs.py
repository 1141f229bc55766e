"""What a configuration needs of models that may have to be downloaded, and what of it is on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants
from rich.filesize import decimal

from profusion_cli.config import Config
from profusion_cli.listener import who_hears
from profusion_cli.methods import is_word_method
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.descriptions import read_description
from profusion_cli.runtime.device import Placement
from profusion_cli.runtime.downloads import cache_of, check_space, missing_bytes
from profusion_cli.runtime.finding import files_to_fetch, find_files, place_at_hand, weight_names
from profusion_cli.runtime.hub import AGAIN, Source, at_hand, shard_names
from profusion_cli.runtime.inpaint import InpaintingModel
from profusion_cli.runtime.parts import DIFFUSERS_WEIGHTS, PARTS
from profusion_cli.runtime.weights import official_source

ANYWHERE = Placement(torch.device("cpu"), torch.float32, torch.float32, "no")
DRAWS = tuple(name for name, part in PARTS.items() if "draws" in part.roles)
"""The parts of a base model that pictures are drawn with."""


@dataclass(frozen=True)
class Need:
    """One part of a model.

    Args:
        title: its name in messages.
        source: where it comes from.
        required: files without which it is not there.
        weights: names that its weights may have; may be empty.
        optional: further files.
    """

    title: str
    source: Source
    required: tuple[str, ...]
    weights: tuple[str, ...]
    optional: tuple[str, ...] = ()


def base_needs(config: Config, names: Sequence[str] = tuple(PARTS)) -> list[Need]:
    """Parts of the base model; none of random weights."""
    if config.base.random is not None:
        return []
    base = BaseModel(config.base, ANYWHERE)
    return [_need(name, base.source(name)) for name in names]


def _need(name: str, source: Source, purpose: str = "") -> Need:
    part = PARTS[name]
    return Need(f"{part.title}{purpose}", source, part.required, part.weights, part.optional)


def promptnet_needs(config: Config) -> list[Need]:
    """PromptNet, unless it is a bundle, or there is none."""
    source = official_source(config.promptnet, config.base)
    return [] if source is None else [Need("The PromptNet", source, ("config.json",), DIFFUSERS_WEIGHTS)]


def inpainting_needs(config: Config) -> list[Need]:
    """The parts of the inpainting model; none of random weights, or where backgrounds are plain colours."""
    model = config.augment.model
    if model.id is None or not config.augment.inpaint:
        return []
    inpainting = InpaintingModel(model, ANYWHERE, config.base.resolution)
    return [_need(name, inpainting.source(name), " for inpainting") for name in DRAWS]


def finetuning_needs(config: Config, augments: bool) -> list[Need]:
    """What a fine-tuning asks for.

    Args:
        config: the resolved configuration.
        augments: whether views of a photo are made first.
    """
    views = inpainting_needs(config) if augments else []
    if is_word_method(config.finetune.method):
        return [*base_needs(config, [name for name in PARTS if name != "vision"]), *views]
    return [*base_needs(config), *promptnet_needs(config), *views]


def all_needs(config: Config) -> list[Need]:
    """All that the commands may ask for with this configuration."""
    return [*base_needs(config), *promptnet_needs(config), *inpainting_needs(config)]


def provide(needs: Sequence[Need]) -> None:
    """Download what is not on this machine, all of it before anything is loaded.

    Raises:
        UnavailableError, OutputError: as `announce`.
        Interrupted: what has come is kept.
    """
    for need in announce(needs):
        find_files(need.source, need.title, need.required, need.weights, need.optional)


def announce(needs: Sequence[Need]) -> list[Need]:
    """Tell how much there is to download for all parts together, where it is more than one.

    Returns:
        The parts that are to be downloaded.

    Raises:
        UnavailableError: a part that cannot be had.
        OutputError: they do not fit on the disk.
    """
    asked = [files_to_fetch(need.source, need.title, need.required, need.weights) for need in needs]
    files = list({(file.repository, file.etag): file for part in asked for file in part}.values())
    parts, missing = sum(map(bool, asked)), missing_bytes(files)
    if parts > 1:
        who_hears().note(f"To download: {decimal(missing)} in {parts} parts, into '{constants.HF_HUB_CACHE}'.")
        check_space(missing, f"These {parts} parts have")
    return [need for need, part in zip(needs, asked, strict=True) if part]


@dataclass(frozen=True)
class Stock:
    """What of a part is on this machine.

    Args:
        size: of its files here, in bytes.
        complete: whether nothing is missing.
        missing: bytes that are, or None where only the Hub knows.
    """

    size: int
    complete: bool
    missing: int | None


def stock_of(need: Need) -> Stock:
    """What of a part is on this machine, without asking the network."""
    source = place_at_hand(need.source, need.required, need.weights)
    found = [at_hand(source, name) for name in need.required]
    total = None
    if need.weights:
        chosen = next((name for name in weight_names(need.weights) if at_hand(source, name)), need.weights[0])
        path = at_hand(source, chosen)
        found.append(path)
        if path is not None and chosen.endswith(".index.json"):
            shards = [at_hand(source, name) for name in shard_names(path)]
            found += shards
            whole = _total_size(path)
            total = None if whole is None else whole - sum(shard.stat().st_size for shard in shards if shard)
    complete = all(found)
    size = sum(path.stat().st_size for path in found if path)
    return Stock(size, complete, 0 if complete else total if all(found[: len(need.required) + 1]) else None)


def _total_size(index: Path) -> int | None:
    """The bytes of all shards, by their index; None where it does not say.

    Raises:
        UnavailableError: an index that cannot be read.
    """
    metadata = read_description(index, AGAIN).get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return size if isinstance(size, int) else None


def broken_off(repository: str) -> int:
    """Bytes of broken-off downloads from a repository, which go on in a later run."""
    return sum(path.stat().st_size for path in (cache_of(repository) / "blobs").glob("*.incomplete"))
