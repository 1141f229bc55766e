"""The kinds of bundles, and the files that they hold: one table."""

from __future__ import annotations

from dataclasses import dataclass

PROMPTNET_FILE = "promptnet.safetensors"
UNET_FILE = "unet.safetensors"
VIEWS_FILE = "views.safetensors"
IMAGES_FILE = "images.safetensors"
WORD_FILE = "word.safetensors"
ADAPTERS_FILE = "adapters.safetensors"
FILES = (PROMPTNET_FILE, UNET_FILE, VIEWS_FILE, IMAGES_FILE, WORD_FILE, ADAPTERS_FILE)
"""All files of tensors that a bundle may hold, in their order."""


@dataclass(frozen=True)
class BundleKind:
    """What a bundle of one kind is, for messages, and what it must hold.

    Args:
        holds: a noun.
        verb: that goes with it.
        made_by: commands.
        taken_by: commands or options.
        needs: files of tensors; or those of one of the others, in their place.
        config: texts that its configuration must have.
    """

    holds: str
    verb: str
    made_by: str
    taken_by: str
    needs: tuple[tuple[str, ...], ...]
    config: tuple[str, ...] = ()


KINDS: dict[str, BundleKind] = {
    "promptnet": BundleKind(
        holds="a promptnet",
        verb="is",
        made_by="`profusion pretrain` or `profusion import`",
        taken_by="`--promptnet`",
        needs=((PROMPTNET_FILE,),),
    ),
    "images": BundleKind(
        holds="images",
        verb="are",
        made_by="`profusion augment`",
        taken_by="`profusion finetune`",
        needs=((IMAGES_FILE,),),
    ),
    "subject": BundleKind(
        holds="a subject",
        verb="is",
        made_by="`profusion finetune`",
        taken_by="`profusion sample` and `profusion interpolate`",
        needs=((PROMPTNET_FILE, VIEWS_FILE), (WORD_FILE,), (ADAPTERS_FILE, VIEWS_FILE)),
        config=("class_word",),
    ),
}
