"""A subject of whole weights -> the same of adapters."""

from __future__ import annotations

from dataclasses import replace

from profusion_cli.bundle import Bundle, make_bundle
from profusion_cli.bundle.kinds import ADAPTERS_FILE, PROMPTNET_FILE, UNET_FILE
from profusion_cli.bundle.manifest import PARENT
from profusion_cli.config import Config
from profusion_cli.errors import BundleError
from profusion_cli.jobs.parents import parent_of, remember_parent
from profusion_cli.listener import LIBRARIES, LOGGED, Listener


def compress(
    bundle: Bundle,
    config: Config,
    *,
    rank: int | None = None,
    error: float = 0.01,
    named: bool = False,
    listener: Listener = LOGGED,
) -> Bundle:
    """The subject with the nearest changes of low rank in place of its own.

    Args:
        bundle: a subject, tuned in whole weights.
        config: the resolved configuration; `finetune.self_contained` keeps PromptNet as it is, and
            `finetune.save_dtype` is the precision of the result.
        rank: of every matrix; None: the lowest that keeps the error.
        error: how far eps may be off, relative, with S* in "a photo of S*" and its first picture noised.
        named: its PromptNet is the one that the subject's was tuned from; otherwise that is found by its fingerprint.
        listener: who hears of it.

    Raises:
        BundleError: a bundle of another kind, or of which nothing can be compressed.
        UnavailableError: the PromptNet that it was tuned from is not at hand.
        ConfigError: an error that the highest rank does not keep.
    """
    bundle.require("subject")
    from_parent = PROMPTNET_FILE in bundle.files and not config.finetune.self_contained
    if ADAPTERS_FILE in bundle.files or not (from_parent or UNET_FILE in bundle.files):
        raise BundleError(f"'{bundle.name}' holds no whole changes that could be compressed.", "Use it as it is.")
    source = parent_of(bundle, config, named) if from_parent else None
    with listener.working(LIBRARIES):
        from profusion_cli.runtime.backbone import BaseModel
        from profusion_cli.runtime.changes import check_parent
        from profusion_cli.runtime.compression import HIGHEST, Compression
        from profusion_cli.runtime.device import DTYPES, resolve_placement
        from profusion_cli.runtime.needs import DRAWS, base_needs, promptnet_needs, provide
        from profusion_cli.runtime.weights import load_promptnet, pack

    provide([*base_needs(config, DRAWS), *(promptnet_needs(replace(config, promptnet=source)) if source else [])])
    dtype = "float32" if config.dtype == "auto" else config.dtype  # in less, rounding would be taken for an error
    placement, save_dtype = resolve_placement(config.device, dtype, training=False), DTYPES[config.finetune.save_dtype]
    highest = HIGHEST if rank is None else rank
    with BaseModel(config.base, placement, listener) as base, listener.working("Compressing"):
        parent = None if source is None else load_promptnet(source, base, 0).promptnet
        digits = {} if parent is None else {PARENT: check_parent(bundle, parent, source.weights)}
        compression = Compression(base, bundle, parent, config, save_dtype, highest)
        made = compression.cut(rank) if rank is not None else compression.within(error, highest)
    told = {key: value for key, value in bundle.manifest.items() if key not in ("schema_version", "tool", "preview")}
    gone = {UNET_FILE, *([PROMPTNET_FILE] if parent is not None else [])}
    files = {name: bundle.read(name) for name in bundle.files if name not in gone}
    manifest = {
        **told,
        **digits,
        "parents": [*told["parents"], bundle.sha256],
        "compressed": {"rank": made.rank, "error": float(f"{made.error:.4g}")},
    }
    result = make_bundle(manifest, {**files, ADAPTERS_FILE: pack(made.tensors, save_dtype)}, bundle.preview)
    if parent is not None:
        remember_parent(replace(config, promptnet=source), manifest[PARENT], listener)
    return result
