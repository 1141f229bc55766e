"""The resolved configuration: frozen dataclasses, built from plain mappings and checked value by value."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from profusion_cli.errors import ConfigError
from profusion_cli.samplers import SAMPLERS, SamplerName

DType = Literal["auto", "float32", "float16", "bfloat16"]


class FlagText(str):
    """Text given with `--set`, where `1e-4` may be a number although YAML reads it as text."""


def _between(low: float | None = None, high: float | None = None, **default: Any) -> Any:
    return field(metadata={"low": low, "high": high}, **default)


@dataclass(frozen=True)
class ComponentConfig:
    """Where one part of the base model comes from; what is null is taken from `base`."""

    subfolder: str = ""
    id: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class RandomConfig:
    """A base model with random weights, built from a seed instead of loaded."""

    size: Literal["tiny", "sd2"] = "tiny"
    seed: int = _between(0, 2**32 - 1, default=0)


@dataclass(frozen=True)
class BaseConfig:
    """The frozen base model, in diffusers' folder layout: a folder or a Hub id."""

    id: str
    revision: str | None = None
    unet: ComponentConfig = ComponentConfig("unet")
    vae: ComponentConfig = ComponentConfig("vae")
    text_encoder: ComponentConfig = ComponentConfig("text_encoder")
    tokenizer: ComponentConfig = ComponentConfig("tokenizer")
    scheduler: ComponentConfig = ComponentConfig("scheduler")
    vision: ComponentConfig = ComponentConfig("vision")
    random: RandomConfig | None = None
    resolution: int = _between(8, 4096, default=512)
    clip_skip: int = _between(0, 12, default=0)
    vision_antialias: bool = False
    pad_token_id: int | None = _between(0, 2**31 - 1, default=None)
    """The token that fills up prompts, 0 for Stable Diffusion 2; None: the one that the tokenizer names."""
    words: tuple[str, ...] = ()
    """The words that the text encoder was taught, where they are few; others in a prompt are warned of."""


@dataclass(frozen=True)
class PromptNetSource:
    """Where PromptNet's weights come from: a .pfz file, a folder or Hub id in the authors' layout,
    `base` (beside the base model, in that layout), or `untrained` (started from the base's UNet)."""

    weights: str | None = None
    revision: str | None = None
    subfolder: str = "promptnet"
    sha256: str | None = None
    note: str = ""
    region_kernel_size: int = _between(1, 512, default=8)
    region_proj_channels: int = _between(1, 4096, default=128)


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning on one subject; `profusion_cli.methods` describes the methods and what they set here.

    `embedding_l2` is lambda: of eq. (2), or of the pull to the coarse word in textual inversion. What is from `word`
    on is for methods whose S* is an ordinary word: the text that it starts from (`{class}` is the class word without
    its article), the prompts that are trained on (`concept_prompt` where there are none), and DreamBooth's pictures of
    the class.
    """

    method: Literal["profusion", "e4t", "textual-inversion", "dreambooth"] = "profusion"
    steps: int = _between(0, 1_000_000, default=50)
    batch_size: int = _between(1, 4096, default=8)
    learning_rate: float = _between(0, 1, default=2.0e-5)
    weight_decay: float = _between(0, 1, default=0.01)
    max_grad_norm: float = _between(0, None, default=1.0)
    train: Literal["promptnet", "qkv", "attention", "unet"] = "attention"
    embedding_l2: float = _between(0, None, default=0.0)
    gradient_accumulation: int = _between(1, 4096, default=1)
    gradient_checkpointing: bool = False
    save_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    word: str = "{class}"
    prompts: tuple[str, ...] = ()
    prior_pictures: int = _between(0, 100_000, default=0)
    prior_weight: float = _between(0, None, default=1.0)


@dataclass(frozen=True)
class InpaintModel:
    """The inpainting model, in diffusers' folder layout: a folder or a Hub id, or random weights; `pad_token_id` as of
    the base model."""

    id: str | None = "sd2-community/stable-diffusion-2-inpainting"
    revision: str | None = None
    unet: ComponentConfig = ComponentConfig("unet")
    random: RandomConfig | None = None
    pad_token_id: int | None = _between(0, 2**31 - 1, default=None)

    def __post_init__(self) -> None:
        if self.id is None and self.random is None:
            raise ConfigError(
                "augment.model has neither an id nor random weights.",
                "Name a folder or Hub id with --set augment.model.id=FOLDER.",
            )


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation: the subject of one photo, moved, on other backgrounds (Appendix B of the paper)."""

    method: Literal["face", "thing"] = "face"
    views: int = _between(1, 999, default=31)
    scale_min: float = _between(0.05, 4, default=0.6)
    scale_max: float = _between(0.05, 4, default=1.0)
    rotation: float = _between(0, 180, default=10.0)
    translation: float = _between(0, 1, default=0.2)
    flip: bool = False
    inpaint: bool = True
    model: InpaintModel = InpaintModel()
    steps: int = _between(1, 999, default=50)
    guidance_scale: float = _between(0, 100, default=7.5)
    batch_size: int = _between(1, 4096, default=4)
    prompt: str = (
        "a photo of {class_word}, highly detailed, soft natural lighting, photo realism, professional portrait, "
        "ultra-detailed, 4k resolution, wallpaper, hd wallpaper"
    )
    negative_prompt: str = (  # spelt as in the authors' code; the paper has "magazine" and "border"
        "magzine, frame, tiled, repeated, multiple people, multiple faces, group of people, split frame, "
        "multiple panel, split image, watermark, boarder, diptych, triptych"
    )

    def __post_init__(self) -> None:
        if self.scale_min > self.scale_max:
            raise ConfigError(
                f"augment.scale_min={self.scale_min} is more than augment.scale_max={self.scale_max}.",
                "Exchange them.",
            )


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-training PromptNet on many pictures; `batch_size` counts all processes together."""

    steps: int = _between(1, 100_000_000, default=80_000)
    batch_size: int = _between(1, 65_536, default=64)
    learning_rate: float = _between(0, 1, default=2.0e-5)
    weight_decay: float = _between(0, 1, default=0.01)
    max_grad_norm: float = _between(0, None, default=1.0)
    warmup_steps: int = _between(0, 100_000_000, default=0)
    ema_decay: float = _between(0, 0.999999, default=0.0)
    embedding_l2: float = _between(0, None, default=0.0)
    gradient_accumulation: int = _between(1, 4096, default=1)
    gradient_checkpointing: bool = False
    checkpoint_every: int = _between(1, 100_000_000, default=1000)
    keep_checkpoints: int = _between(1, 1000, default=2)
    sample_every: int = _between(0, 100_000_000, default=0)
    sample_steps: int = _between(1, 1000, default=20)
    save_dtype: Literal["float16", "bfloat16", "float32"] = "float16"


@dataclass(frozen=True)
class SampleConfig:
    """Sampling: what to draw, and how Fusion Sampling weighs subject and text."""

    num_images: int = _between(1, 100_000, default=1)
    batch_size: int = _between(1, 4096, default=1)
    steps: int = _between(1, 1000, default=50)
    negative_prompt: str = ""
    width: int | None = _between(8, 4096, default=None)
    height: int | None = _between(8, 4096, default=None)
    sampler: SamplerName = "fusion"
    fusion_steps: int = _between(0, 100, default=1)
    gamma: float = _between(0, 1, default=0.6)
    gamma_on: Literal["embedding", "hidden", "hidden-first"] = "hidden"
    subject_prompt: Literal["concept", "full"] = "full"
    subject_guidance: tuple[float, ...] = _between(0, 100, default=(7.0,))
    text_guidance: float = _between(0, 100, default=5.0)
    fusion_guidance: float = _between(0, 100, default=7.0)
    fusion_eta: float = _between(0, 1, default=1.0)
    eta: float = _between(0, 1, default=0.0)
    weights: tuple[float, ...] | None = _between(0, None, default=None)
    reference: int = _between(1, 1000, default=1)

    def __post_init__(self) -> None:
        if not SAMPLERS[self.sampler].refinement and self.fusion_steps == 0:
            raise ConfigError(
                f"sample.sampler={self.sampler} with sample.fusion_steps=0 leaves nothing to do.",
                "Use at least one fusion step, or another sampler.",
            )
        for name in ("subject_guidance", "weights"):
            values = getattr(self, name)
            if values is not None and (not values or sum(values) <= 0):
                raise ConfigError(f"sample.{name} must not be empty or all zero.", "Give at least one positive number.")


@dataclass(frozen=True)
class Config:
    """Everything a command needs to know besides its inputs and outputs."""

    preset: str
    base: BaseConfig
    description: str = ""
    promptnet: PromptNetSource = PromptNetSource()
    augment: AugmentConfig = AugmentConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sample: SampleConfig = SampleConfig()
    class_word: str = "a person"
    concept_prompt: str = "a photo of S*"
    placeholder: str = "S*"
    device: str = "auto"
    dtype: DType = "auto"
    seed: int = _between(0, 2**32 - 1, default=0)

    def __post_init__(self) -> None:
        for name in ("class_word", "placeholder"):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name} is empty.", "Give at least one word.")
        if any(character.isspace() for character in self.placeholder):
            raise ConfigError(f"placeholder='{self.placeholder}' contains a space.", "Use a single word.")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, ready for YAML; tuples become lists."""
        return _plain(asdict(self))


def changed(config: Any) -> dict[str, Any]:
    """What of a configuration differs from the defaults of this version, as plain data: a digest of it stays the same
    when a later version has more keys."""
    result: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            if inner := changed(value):
                result[item.name] = inner
        elif item.default is MISSING or value != item.default:
            result[item.name] = _plain(value)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, FlagText):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings laid over one another, later ones winning, key by key at every depth."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merge(result[key], value)
            else:
                result[key] = value
    return result


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"sample.steps": 10}` as `{"sample": {"steps": 10}}`."""
    result: dict[str, Any] = {}
    for path, value in flat.items():
        layer: Any = value
        for key in reversed(path.split(".")):
            layer = {key: layer}
        result = merge(result, layer)
    return result


def flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`{"sample": {"steps": 10}}` as `{"sample.steps": 10}`."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        result |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return result


def build_config(layers: Mapping[str, Any]) -> Config:
    """The configuration that merged layers describe.

    Raises:
        ConfigError: an unknown key (with the nearest one), a value of the wrong type or out of range.
    """
    return build(Config, layers, "")


def build(cls: type, values: Any, path: str) -> Any:
    """A frozen dataclass from a plain mapping, checked key by key; `path` is how messages call it.

    Raises:
        ConfigError: as `build_config`.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path or 'The configuration'} must be a mapping, not {values!r}.", "Indent its keys below it."
        )
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}
    arguments = {}
    for key, value in values.items():
        full = f"{path}.{key}" if path else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ConfigError(
                f"There is no configuration key '{full}'.",
                f"Did you mean '{f'{path}.' if path else ''}{near[0]}'?"
                if near
                else f"Known keys here: {', '.join(known)}.",
            )
        if is_dataclass(known[key].default) and isinstance(value, Mapping):
            value = merge(asdict(known[key].default), value)
        arguments[key] = _coerce(value, hints[key], full)
        _check_range(arguments[key], known[key].metadata, full)
    for name, item in known.items():
        if name not in arguments and item.default is MISSING and item.default_factory is MISSING:
            full = f"{path}.{name}" if path else name
            raise ConfigError(f"The configuration key '{full}' is missing.", "Add it to the preset file.")
    return cls(**arguments)


def _wrong(full: str, value: Any, expected: str, hint: str = "") -> ConfigError:
    return ConfigError(f"{full}={value!r} is not {expected}.", hint or f"Give {expected}.")


def _coerce(value: Any, hint: Any, full: str) -> Any:
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (dict, list):
        if not isinstance(value, origin):
            raise _wrong(full, value, "a mapping" if origin is dict else "a list")
        items = value.items() if origin is dict else enumerate(value)
        coerced = {key: _coerce(entry, options[-1], f"{full}.{key}") for key, entry in items}
        return coerced if origin is dict else list(coerced.values())
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _coerce(value, next(option for option in options if option is not type(None)), full)
    if origin is Literal:
        if not isinstance(value, str) or value not in options:
            near = difflib.get_close_matches(str(value), options, n=1)
            raise _wrong(full, value, f"one of {', '.join(options)}", f"Did you mean '{near[0]}'?" if near else "")
        return str(value)
    if origin is tuple:
        entries = value if isinstance(value, list | tuple) else [value]
        return tuple(_coerce(entry, options[0], full) for entry in entries)
    if is_dataclass(hint):
        return build(hint, value, full)
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong(full, value, "true or false")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(full, value, "a whole number")
        return value
    if hint is float:
        if isinstance(value, FlagText) and _is_number(value):
            value = float(value)
        if isinstance(value, str) and _is_number(value):
            raise _wrong(full, value, "a number in YAML", f"YAML reads {value} as text: write {_yaml_float(value)}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(full, value, "a number")
        try:
            return float(value)
        except OverflowError:
            raise _wrong(full, "a number of so many digits", "a number") from None
    if not isinstance(value, str):
        raise _wrong(full, value, "text", "Put it in quotes, inside those of the shell.")
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _yaml_float(text: str) -> str:
    mantissa, _, exponent = f"{float(text):e}".partition("e")
    return f"{float(mantissa)}e{int(exponent):+d}"


def _check_range(value: Any, metadata: Mapping[str, Any], full: str) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, int | float):
            continue
        low, high = metadata.get("low"), metadata.get("high")
        if not abs(number) < float("inf") or (low is not None and number < low) or (high is not None and number > high):
            span = f"between {low} and {high}" if high is not None else f"at least {low}"
            raise ConfigError(f"{full}={number} is out of range.", f"Use a value {span}.")
