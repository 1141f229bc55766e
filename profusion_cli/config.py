"""The resolved configuration: frozen dataclasses, whose fields say all there is to know of a key.

A field's type, range, default and help are declared here alone. The command line's options (`profusion_cli.options`),
the list of keys (`profusion presets --keys`) and the checks of `profusion_cli.mappings` read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from profusion_cli.errors import ConfigError
from profusion_cli.lora import AdapterConfig
from profusion_cli.mappings import build, plain
from profusion_cli.plans import PlansConfig, SolverName
from profusion_cli.pretraining import PretrainConfig, SaveDType
from profusion_cli.sampling import SampleConfig
from profusion_cli.settings import AUGMENTATION, CONFIGURATION, OUTPUT, setting
from profusion_cli.thrift import (
    CHECKPOINTING,
    OFFLOAD,
    OPTIMIZER,
    PARTS,
    Checkpointing,
    OffloadName,
    OptimizerName,
    Parts,
)

DType = Literal["auto", "float32", "float16", "bfloat16"]
SEEDS = 2**32 - 1


@dataclass(frozen=True)
class ComponentConfig:
    """Where one part of the base model comes from; what is null is taken from `base`."""

    subfolder: str = setting("Where the part lies in its folder or repository; '' is the folder itself.", "")
    id: str | None = setting("A folder or Hub id for this part alone.", None)
    revision: str | None = setting("Branch, tag or commit of `id` on the Hub.", None)


@dataclass(frozen=True)
class MirrorConfig:
    """A second place of the base model on the Hub, which holds the same files under the same names."""

    id: str = setting("A Hub id.")
    revision: str | None = setting("Branch, tag or commit; a commit is named by its content.", None)


@dataclass(frozen=True)
class RandomConfig:
    """A base model with random weights, built from a seed instead of loaded."""

    size: Literal["tiny", "sd2", "sd15"] = setting(
        "tiny (a few thousand weights), sd2 or sd15 (Stable Diffusion's).", "tiny"
    )
    seed: int = setting("Seed of the weights.", 0, 0, SEEDS)


@dataclass(frozen=True)
class BaseConfig:
    """The frozen base model, in diffusers' folder layout: a folder or a Hub id; or a checkpoint in one file."""

    id: str = setting(
        "Take the base model from this folder, file or Hub id instead of the preset's.",
        flag="--base-model",
        panel=CONFIGURATION,
        metavar="FOLDER|FILE|ID",
    )
    revision: str | None = setting("Branch, tag or commit on the Hub.", None)
    unet: ComponentConfig = setting("The UNet.", ComponentConfig("unet"))
    vae: ComponentConfig = setting("The autoencoder.", ComponentConfig("vae"))
    text_encoder: ComponentConfig = setting("The text encoder.", ComponentConfig("text_encoder"))
    tokenizer: ComponentConfig = setting("Its tokenizer.", ComponentConfig("tokenizer"))
    scheduler: ComponentConfig = setting("The noise schedule.", ComponentConfig("scheduler"))
    vision: ComponentConfig = setting("The vision tower that PromptNet sees through.", ComponentConfig("vision"))
    random: RandomConfig | None = setting("Random weights instead of loaded ones.", None)
    mirror: MirrorConfig | None = setting("Where it is fetched from if the first repository is gone.", None)
    resolution: int = setting("Side of the pictures that the model was trained on, in pixels.", 512, 8, 4096)
    clip_skip: int = setting("Last layers of the text encoder that are left out.", 0, 0, 12)
    vision_antialias: bool = setting("Whether pictures are low-pass filtered before the vision tower.", False)
    pad_token_id: int | None = setting(
        "The token that fills up prompts, 0 for Stable Diffusion 2; null: the one that the tokenizer names.",
        None,
        0,
        2**31 - 1,
    )
    words: tuple[str, ...] = setting(
        "The words that the text encoder was taught, where they are few; others in a prompt are warned of.", ()
    )

    def place(self, part: str) -> tuple[str, str | None, str]:
        """From where a part comes: a folder or Hub id, revision and sub-folder; its own, else the base model's."""
        own: ComponentConfig = getattr(self, part)
        if own.id:
            return own.id, own.revision, own.subfolder
        return self.id, own.revision or self.revision, own.subfolder


BASE_PARTS = tuple(part.name for part in fields(BaseConfig) if isinstance(part.default, ComponentConfig))
"""The fields of `BaseConfig` that are parts of the base model."""
UNTRAINED = "untrained"
"""Weights of a PromptNet that is started from the base's UNet."""
BESIDE_BASE = "base"
"""Weights of a PromptNet that lies beside the base model, in the authors' layout."""


@dataclass(frozen=True)
class PromptNetSource:
    """Where PromptNet's weights come from."""

    weights: str | None = setting(
        "PromptNet: a .pfz (- is standard input), or a folder or Hub id in the authors' layout; in presets also `base` "
        "(beside the base model, in that layout) or `untrained` (started from the base's UNet).",
        None,
        flag="--promptnet",
        metavar="FILE",
    )
    revision: str | None = setting("Branch, tag or commit on the Hub.", None)
    subfolder: str = setting("Where it lies in a folder of the authors' layout.", "promptnet")
    sha256: str | None = setting("What the weights' SHA-256 must be.", None)
    note: str = setting("What is told of these weights when they are used.", "")
    region_kernel_size: int = setting("Side of one word's region on the smallest feature map.", 8, 1, 512)
    region_proj_channels: int = setting("Channels that the feature maps are projected to.", 128, 1, 4096)


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning on one subject; `profusion_cli.methods` describes the methods and what they set here.

    What is from `word` on is for methods whose S* is an ordinary word.
    """

    method: Literal["profusion", "e4t", "textual-inversion", "dreambooth"] = setting(
        "profusion, or a baseline with its own paper's settings: e4t, textual-inversion, dreambooth.",
        "profusion",
        flag="--method",
    )
    steps: int = setting("Optimiser steps; 0 keeps PromptNet as it is (tuning-free).", 50, 0, 1_000_000, flag="--steps")
    batch_size: int = setting("Pictures per step.", 8, 1, 4096, flag="--batch-size")
    learning_rate: float = setting("Learning rate.", 2.0e-5, 0, 1, flag="--lr")
    draws: Literal["independent", "stratified"] = setting(
        "Views and timesteps of a step are independent of one another; or stratified: a timestep from each of "
        "as many equal spans, and no view twice before all have come, so that fewer pictures say as much.",
        "independent",
    )
    weight_decay: float = setting("AdamW's weight decay.", 0.01, 0, 1)
    max_grad_norm: float = setting("Gradients are clipped to this norm; 0 clips nothing.", 1.0, 0)
    train: Literal["auto", "lora", "promptnet", "qkv", "attention", "unet"] = setting(
        "What is trained: lora (adapters of PromptNet and of the UNet), or PromptNet and of the UNet nothing "
        "(promptnet), qkv, attention, or all (unet); auto: attention where it fits the free memory, else lora.",
        "attention",
        flag="--train",
    )
    adapters: AdapterConfig = setting("The adapters of train=lora.", AdapterConfig())
    self_contained: bool = setting(
        "With train=lora, keep the whole PromptNet in the bundle too, which is larger and needs no other file.",
        False,
        flag="--self-contained",
    )
    embedding_l2: float = setting(
        "Lambda of eq. (2); of the pull to the coarse word in textual inversion. 0 is eq. (1).", 0.0, 0
    )
    gradient_accumulation: Parts = PARTS
    gradient_checkpointing: Checkpointing = CHECKPOINTING
    optimizer: OptimizerName = OPTIMIZER
    save_dtype: SaveDType = setting(
        "Precision in the bundle: float16, bfloat16 or float32.", "float16", flag="--save-dtype"
    )
    word: str = setting("The text that S* starts from; `{class}` is the class word without its article.", "{class}")
    prompts: tuple[str, ...] = setting("Prompts that are trained on; none: `concept_prompt`.", ())
    prior_pictures: int = setting("DreamBooth's pictures of the class.", 0, 0, 100_000)
    prior_weight: float = setting("The weight of their loss.", 1.0, 0)


@dataclass(frozen=True)
class InpaintModel:
    """The inpainting model, in diffusers' folder layout: a folder or a Hub id, or random weights."""

    id: str | None = setting("A folder or Hub id; null with `random`.", "sd2-community/stable-diffusion-2-inpainting")
    revision: str | None = setting("Branch, tag or commit on the Hub.", None)
    unet: ComponentConfig = setting("Its UNet.", ComponentConfig("unet"))
    random: RandomConfig | None = setting("Random weights instead of loaded ones.", None)
    pad_token_id: int | None = setting("As `base.pad_token_id`, of its own tokenizer.", None, 0, 2**31 - 1)

    def __post_init__(self) -> None:
        if self.id is None and self.random is None:
            raise ConfigError(
                "augment.model has neither an id nor random weights.",
                "Name a folder or Hub id with --set augment.model.id=FOLDER.",
            )


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation: the subject of one photo, moved, on other backgrounds (Appendix B of the paper)."""

    method: Literal["face", "thing"] = setting("How the subject is found: face or thing.", "face")
    views: int = setting("How many pictures to make.", 31, 1, 999, flag="--views", panel=AUGMENTATION, metavar="N")
    scale_min: float = setting("Least size of the subject, of its size in the photo.", 0.6, 0.05, 4)
    scale_max: float = setting("Greatest size of the subject.", 1.0, 0.05, 4)
    rotation: float = setting("Most that it is turned, to either side, in degrees.", 10.0, 0, 180)
    translation: float = setting("Most that it is moved, as a part of the picture's side.", 0.2, 0, 1)
    flip: bool = setting("Whether every second picture, by chance, is mirrored.", False)
    inpaint: bool = setting(
        "Lay the subject on plain colours, without an inpainting model.", True, flag="--no-inpaint", panel=AUGMENTATION
    )
    model: InpaintModel = setting("The inpainting model.", InpaintModel())
    steps: int = setting("Sampler steps of the inpainting.", 50, 1, 999)
    solver: SolverName = setting("What takes them: ddim, or dpm-solver++ of the second order, for fewer.", "ddim")
    guidance_scale: float = setting("Guidance scale of the inpainting.", 7.5, 0, 100)
    batch_size: int = setting("Pictures inpainted at once; changes speed and memory only.", 4, 1, 4096)
    prompt: str = setting(
        "What the backgrounds are painted to; `{class_word}` is the class word.",
        "a photo of {class_word}, highly detailed, soft natural lighting, photo realism, professional portrait, "
        "ultra-detailed, 4k resolution, wallpaper, hd wallpaper",
    )
    negative_prompt: str = setting(
        "What they should not show, spelt as in the authors' code (the paper has magazine, border).",
        "magzine, frame, tiled, repeated, multiple people, multiple faces, group of people, split frame, "
        "multiple panel, split image, watermark, boarder, diptych, triptych",
    )

    def __post_init__(self) -> None:
        if self.scale_min > self.scale_max:
            raise ConfigError(
                f"augment.scale_min={self.scale_min} is more than augment.scale_max={self.scale_max}.",
                "Exchange them.",
            )


@dataclass(frozen=True)
class Config:
    """Everything a command needs to know besides its inputs and outputs."""

    preset: str = setting("The preset that the values come from: chosen with --preset alone.")
    base: BaseConfig = setting("The base model.")
    description: str = setting("What `profusion presets` says of the preset.", "")
    promptnet: PromptNetSource = setting("Where PromptNet's weights come from.", PromptNetSource())
    augment: AugmentConfig = setting("Augmentation of one photo.", AugmentConfig())
    finetune: FinetuneConfig = setting("Fine-tuning on one subject.", FinetuneConfig())
    pretrain: PretrainConfig = setting("Pre-training PromptNet.", PretrainConfig())
    sample: SampleConfig = setting("Sampling.", SampleConfig())
    plans: PlansConfig = setting("Plans of `sample.speed`.", PlansConfig())
    class_word: str = setting(
        'What the subject is, for the text without it ("a person").', "a person", flag="--class-word"
    )
    concept_prompt: str = setting("The prompt for the subject alone.", "a photo of S*")
    placeholder: str = setting("The word that stands for the subject in prompts (S*).", "S*", flag="--placeholder")
    device: str = setting("auto, cpu, cuda, cuda:N or mps.", "auto", flag="--device", panel=CONFIGURATION)
    dtype: DType = setting("auto, float32, float16 or bfloat16.", "auto", flag="--dtype", panel=CONFIGURATION)
    seed: int = setting(
        "Seed of every random number; --seed -1 draws one, and tells it.",
        0,
        0,
        SEEDS,
        flag="--seed",
        panel=CONFIGURATION,
    )
    deterministic: bool = setting(
        "The same bytes whatever the number of threads: one CPU thread, and algorithms that repeat themselves. Slower.",
        False,
        flag="--deterministic",
        panel=CONFIGURATION,
    )
    compile: bool = setting(
        "Draw, and tune, with networks compiled by torch.compile: the first step takes minutes, all others less.",
        False,
        flag="--compile",
        panel=CONFIGURATION,
    )
    offload: OffloadName = OFFLOAD
    mark: bool = setting(
        "Leave out of pictures what tells programs that a trained model has drawn them (XMP).",
        True,
        flag="--no-mark",
        panel=OUTPUT,
    )

    def __post_init__(self) -> None:
        for name in ("class_word", "placeholder"):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name} is empty.", "Give at least one word.")
        if self.compile and self.offload == "group":
            raise ConfigError("compile=true and offload=group exclude one another.", "Leave one of them out.")
        if any(character.isspace() for character in self.placeholder):
            raise ConfigError(f"placeholder='{self.placeholder}' contains a space.", "Use a single word.")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for YAML; tuples become lists."""
        return plain(asdict(self))


def build_config(layers: Mapping[str, Any]) -> Config:
    """The configuration that merged layers describe.

    Raises:
        ConfigError: an unknown key (with the nearest one), a value of the wrong type or out of range.
    """
    return build(Config, layers, "")
