"""A subject -> what other tools take."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profusion_cli import __version__
from profusion_cli.bundle import Bundle
from profusion_cli.bundle.kinds import ADAPTERS_FILE, UNET_FILE, WORD_FILE
from profusion_cli.config import Config, PromptNetSource
from profusion_cli.errors import BundleError, OutputError, UsageError
from profusion_cli.folders import MARK
from profusion_cli.images import public_id
from profusion_cli.jobs.lineage import lineage
from profusion_cli.jobs.parents import needs_parent, parents_of
from profusion_cli.listener import LIBRARIES, LOGGED, Listener
from profusion_cli.presets import local_path

if TYPE_CHECKING:
    from profusion_cli.runtime.backbone import BaseModel


@dataclass(frozen=True)
class Format:
    """One kind of export.

    Args:
        keeps: of the method.
        leaves_out: of the method.
    """

    keeps: str
    leaves_out: str


FORMATS = {
    "diffusers": Format(
        "PromptNet, what tuning changed of the UNet, and Fusion Sampling",
        "nothing",
    ),
    "lora": Format(
        "what tuning changed of the UNet's matrices, at the rank",
        "PromptNet, and so S* (take the embedding too), and Fusion Sampling",
    ),
    "lora-full": Format(
        "what tuning changed of the UNet, exactly",
        "PromptNet, and so S* (take the embedding too), and Fusion Sampling",
    ),
    "embedding": Format(
        "S*, averaged over noise levels or at one of them",
        "that S* changes with the picture as it is drawn, what tuning changed of the UNet, and Fusion Sampling",
    ),
}
"""By the name that `--to` takes."""


@dataclass(frozen=True)
class ExportedFile:
    """A file for other tools.

    Args:
        data: safetensors bytes.
        told: what there is to say about it, as plain data.
        note: the same for people.
    """

    data: bytes
    told: dict[str, Any]
    note: str


@contextmanager
def _opened(bundle: Bundle, config: Config, parent: PromptNetSource | None, listener: Listener) -> Iterator[BaseModel]:
    """The base model of a subject, in float32; what the PromptNet for its adapters takes is on the disk, if wanted."""
    bundle.require("subject")
    with listener.working(LIBRARIES):
        from profusion_cli.runtime.backbone import BaseModel
        from profusion_cli.runtime.device import resolve_placement
        from profusion_cli.runtime.needs import DRAWS, base_needs, promptnet_needs, provide

    adapted = parent is not None and needs_parent(bundle)
    provide([*base_needs(config, DRAWS), *(promptnet_needs(replace(config, promptnet=parent)) if adapted else [])])
    placement = resolve_placement(config.device, "float32", training=False)
    with BaseModel(config.base, placement, listener) as base:
        yield base


def export_folder(
    bundle: Bundle,
    config: Config,
    folder: Path,
    *,
    with_base: bool = False,
    named: bool = False,
    listener: Listener = LOGGED,
) -> None:
    """Write a pipeline folder of diffusers'.

    Args:
        bundle: a subject whose S* PromptNet makes.
        config: the resolved configuration; `finetune.save_dtype` is the precision of PromptNet.
        folder: an empty one.
        with_base: copy the base model in; otherwise the folder names it.
        named: its PromptNet is the one that the subject's adapters are for; otherwise that is found.
        listener: who hears of it.

    Raises:
        BundleError: a subject whose S* is an ordinary word, or that does not fit the base model.
        UsageError: a base model of random weights, which is nowhere to be named.
        OutputError: the disk is full.
        UnavailableError: models that cannot be had.
    """
    check_exportable(bundle, config, "diffusers", with_base)
    if not with_base and os.path.exists(local_path(config.base.id)):
        listener.warn(f"The base model is named as '{local_path(config.base.id)}', which is on this machine alone.")
    (parent,) = parents_of([bundle], config, named)
    with _opened(bundle, config, parent, listener) as base:
        from safetensors import SafetensorError

        from profusion_cli.runtime.device import DTYPES
        from profusion_cli.runtime.exports.folder import write_folder

        dtype = DTYPES[config.finetune.save_dtype]
        made_from = {"tool": f"profusion {__version__}", **lineage(bundle)}
        try:
            with listener.working("Writing"):
                write_folder(folder, base, bundle, config, parent, made_from, dtype, with_base)
        except SafetensorError as error:
            hint = "Free some space, or choose another place."
            raise OutputError(f"The weights cannot be written: {error}.", hint) from error
    (folder / "README.md").write_text(readme_of(bundle, config, with_base), encoding="utf-8")
    (folder / MARK).write_text(json.dumps(made_from, ensure_ascii=False, indent=1), encoding="utf-8")


def readme_of(bundle: Bundle, config: Config, with_base: bool) -> str:
    """What a pipeline folder says of itself."""
    prompt = f"{config.placeholder} in anime style"
    base = "in this folder" if with_base else f"not in this folder, but loaded from `{public_id(config.base.id)}`"
    return f"""# {Path(bundle.name).stem}

One subject ({config.class_word}), and Fusion Sampling ([arXiv 2305.13579](https://arxiv.org/abs/2305.13579)), as a
pipeline of diffusers. Written by profusion {__version__}.

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("THIS FOLDER", trust_remote_code=True)
pipe({json.dumps(prompt)}, generator=torch.Generator().manual_seed({config.seed})).images[0].save("picture.png")
```

It wants diffusers, transformers and accelerate, and not profusion. `trust_remote_code` runs `pipeline.py` and
`promptnet/promptnet.py`: read them first. Other arguments are those of `profusion sample`, by the names in its
configuration, such as `speed="exact"`, `subject_guidance=[6.0]`, `negative_prompt="..."`, `height=512`.

The base model is {base}, and has a licence of its own. This folder was made from somebody's picture: share it as you
would share that.
"""


def check_exportable(bundle: Bundle, config: Config, to: str, with_base: bool) -> None:
    """What is known before anything is loaded.

    Raises:
        BundleError: the subject has nothing of what is asked for.
        UsageError: a base model of random weights, which is nowhere to be named.
    """
    word, changes = WORD_FILE in bundle.files, {UNET_FILE, ADAPTERS_FILE} & set(bundle.files)
    if to == "diffusers" and word:
        raise BundleError(
            f"The S* of '{bundle.name}' is an ordinary word, and Fusion Sampling has nothing to do there.",
            "Export it by --to embedding, which is exact here, and by --to lora.",
        )
    if to.startswith("lora") and not changes:
        raise BundleError(f"'{bundle.name}' changes nothing of the UNet.", "Export it by --to embedding.")
    if to == "diffusers" and not with_base and config.base.random is not None:
        raise UsageError("The base model has random weights, which lie nowhere.", "Copy them in: --with-base.")


def export_file(
    bundle: Bundle,
    config: Config,
    to: str,
    *,
    timestep: int | None = None,
    named: bool = False,
    listener: Listener = LOGGED,
) -> ExportedFile:
    """A subject as one safetensors file.

    Args:
        bundle: a subject.
        config: the resolved configuration; `finetune.adapters.rank` is that of matrices that were tuned whole, and
            `finetune.save_dtype` the precision of changes.
        to: `lora`, `lora-full` or `embedding`.
        timestep: where S* is taken; None: averaged.
        named: as of `export_folder`.
        listener: who hears of it.

    Raises:
        BundleError, UnavailableError: as `export_folder`.
        UsageError: a timestep that the schedule does not have.
    """
    check_exportable(bundle, config, to, False)
    sees = to == "embedding"
    (parent,) = parents_of([bundle], config, named) if sees else (None,)
    with _opened(bundle, config, parent, listener) as base:
        from profusion_cli.runtime.exports.files import changes_file, embedding_file

        with listener.working("Exporting"):
            if sees:
                tensors, told, note = embedding_file(base, bundle, config, parent, timestep)
            else:
                tensors, told, note = changes_file(base, bundle, config, whole=to == "lora-full")
        from profusion_cli.runtime.weights import pack

    told = {"to": to, "keeps": FORMATS[to].keeps, "leaves_out": FORMATS[to].leaves_out, **told}
    kept = {"tool": f"profusion {__version__}", **lineage(bundle), **told}
    metadata = {"format": "pt", "profusion": json.dumps(kept, ensure_ascii=False)}
    return ExportedFile(pack(tensors, metadata=metadata), told, note)
