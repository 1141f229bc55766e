"""The frozen base model: UNet, VAE, text encoder, tokenizer, schedule and vision tower, each loaded when needed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer, CLIPVisionModel

from profusion_cli.config import BaseConfig
from profusion_cli.errors import ConfigError, ProfusionError, UnavailableError
from profusion_cli.interrupts import stop_if_asked
from profusion_cli.listener import LOGGED, Listener
from profusion_cli.presets import local_path
from profusion_cli.runtime.descriptions import describe_part, misfit
from profusion_cli.runtime.device import Placement, free_memory, is_out_of_memory
from profusion_cli.runtime.drawing import decode
from profusion_cli.runtime.finding import find_files
from profusion_cli.runtime.hub import Files, Source, fingerprint, fingerprint_of, stored_dtype
from profusion_cli.runtime.parts import PARTS, title_of
from profusion_cli.runtime.pixels import clip_pixels, pixel_batches
from profusion_cli.runtime.schedule import check_schedule
from profusion_cli.runtime.single_file import folder_of, is_single_file
from profusion_cli.runtime.text import TextConditioner, padding_of
from profusion_cli.sampling import SampleConfig

if TYPE_CHECKING:
    from profusion_cli.runtime.random_base import RandomBase

PLAIN_TRANSFORMERS = {"attn_implementation": "sdpa", "trust_remote_code": False}
"""Said outright, since a config.json may name a kernel or code on the Hub instead."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep diffusers' and transformers' own reports and bars off the terminal; what is wrong is raised.

    The bars stay off; the reports come back.
    """
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    loggings = (diffusers_logging, transformers_logging)
    levels = [logging.get_verbosity() for logging in loggings]
    for logging in loggings:
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, level in zip(loggings, levels, strict=True):
            logging.set_verbosity(level)


class BaseModel:
    """The base model that a configuration describes. Parts load on first use and can be let go.

    Use as a context manager: a base of random weights is in memory meanwhile.

    Args:
        config: where the parts come from.
        placement: device and precision.
        listener: who hears what is loaded.
    """

    inpainting = False
    """Whether a model of random weights is one for inpainting."""

    def __init__(self, config: BaseConfig, placement: Placement, listener: Listener = LOGGED) -> None:
        self.config = config
        self.placement = placement
        self.listener = listener
        self._random: RandomBase | None = None
        self._files: dict[str, Files] = {}
        self._described: dict[str, dict[str, Any]] = {}
        self._fingerprints: dict[str, str] = {}

    def __enter__(self) -> BaseModel:
        stop_if_asked()
        if self.config.random is not None:
            from profusion_cli.runtime.random_base import RandomBase

            random = self.config.random
            with quiet_libraries(), self.listener.working("Building a model of random weights"):
                self._random = RandomBase(random.size, random.seed, inpainting=self.inpainting)
        return self

    def __exit__(self, *_: object) -> None:
        self.release(*(name for name in vars(self) if isinstance(getattr(type(self), name, None), cached_property)))
        self._random = None

    def source(self, name: str) -> Source:
        """Where one part comes from: its own id and revision, else the base model's."""
        part = getattr(self.config, name)
        option = f"--set base.{name}.id=FOLDER" if part.id else "--base-model FOLDER"
        id, revision, subfolder = self.config.place(name)
        if is_single_file(local_path(id)):
            with quiet_libraries():
                id = str(folder_of(Path(local_path(id)), self.config.resolution))
        other = self.config.mirror
        mirror = Source(other.id, other.revision, subfolder, option) if other and id == self.config.id else None
        return Source(id, revision, subfolder, option, mirror)

    def files(self, name: str) -> Files:
        """The files of one part, found or downloaded on first use.

        Raises:
            UnavailableError: they cannot be had.
        """
        if name not in self._files:
            part = PARTS[name]
            self._files[name] = find_files(self.source(name), part.title, part.required, part.weights, part.optional)
        return self._files[name]

    def _load(self, name: str, dtype: torch.dtype, cls: Any = None) -> Any:
        """One part in this precision, by its own class unless another one is given."""
        stop_if_asked()
        if self._random is not None:
            with quiet_libraries():
                return self._random.load(name, dtype, cls)
        files, part = self.files(name), PARTS[name]
        self._settings(name)
        own = {"torch_dtype": dtype} if part.library == "diffusers" else {"dtype": dtype, **PLAIN_TRANSFORMERS}
        try:
            with quiet_libraries(), self.listener.working(f"Loading {title_of(name)}"):
                model, report = (cls or part.cls).from_pretrained(
                    str(files.folder), output_loading_info=True, **files.loading, **own
                )
        except Exception as error:  # the libraries report damage by many types; all mean the same here
            raise self._not_loaded(name, error) from error
        missing = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
        if missing:
            raise UnavailableError(
                f"{part.title} in '{files.folder}' lacks {len(missing)} of its weights, for example {missing[0]}.",
                f"Point to a complete model with {self.source(name).option}.",
            )
        return model.eval().requires_grad_(False)

    def _not_loaded(self, name: str, error: Exception) -> Exception:
        """What to say of a part that a library could not load; an error of ours, or of memory, as it is."""
        if isinstance(error, ProfusionError) or is_out_of_memory(error):
            return error
        problem = " ".join(str(error).split())[:300] or type(error).__name__
        return UnavailableError(
            f"{PARTS[name].title} in '{self.files(name).folder}' cannot be loaded: {problem}", self._another(name)
        )

    def _another(self, name: str) -> str:
        """What to do about a part that is damaged."""
        return f"Fetch it again, or point to another folder with {self.source(name).option}."

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The UNet in float32 on the CPU, as fine-tuning and merged changes need it first."""
        return self._load("unet", torch.float32)

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The VAE on its device."""
        return self._load("vae", self.placement.encoder_dtype).to(self.placement.device)

    @cached_property
    def vision(self) -> CLIPVisionModel:
        """The vision tower whose hidden states PromptNet looks at, on its device."""
        return self._load("vision", self.placement.encoder_dtype).to(self.placement.device)

    def as_stored(self, name: str) -> nn.Module:
        """One part on the CPU, in the precision of its file; float32 of a model of random weights."""
        return self._load(name, torch.float32 if self._random is not None else stored_dtype(self.files(name)))

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The text encoder's tokenizer.

        Raises:
            UnavailableError: it cannot be had.
            ConfigError: it does not fill up prompts with the token that the configuration names.
        """
        if self._random is not None:
            from profusion_cli.runtime.random_base import clip_tokenizer

            return clip_tokenizer(self.config.pad_token_id)
        files = self.files("tokenizer")
        try:
            padding = padding_of(files.folder, self.config.pad_token_id)
            with quiet_libraries():
                tokenizer = CLIPTokenizer.from_pretrained(str(files.folder), trust_remote_code=False, **padding)
            tokenizer("a word")  # what its settings hold is looked at only now
            return tokenizer
        except Exception as error:  # as in `_load`
            raise self._not_loaded("tokenizer", error) from error

    @cached_property
    def text(self) -> TextConditioner:
        """The text encoder up to the layer where the conditioning is read.

        Raises:
            UnavailableError: it cannot be had, or does not know all of the tokenizer's words.
        """
        encoder = self._load("text_encoder", self.placement.dtype).to(self.placement.device)
        marks = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        if None in marks or max(*self.tokenizer.get_vocab().values(), *marks) >= encoder.config.vocab_size:
            raise UnavailableError(
                f"The tokenizer in '{self.files('tokenizer').folder}' has words that the text encoder does not know, "
                "or lacks marks for a text's start and end.",
                self._another("tokenizer"),
            )
        return TextConditioner(encoder, self.tokenizer, self.config.clip_skip)

    @cached_property
    def scheduler(self) -> DDIMScheduler:
        """A DDIM schedule built from the base model's scheduler, of whatever kind that is."""
        if self._random is not None:
            return DDIMScheduler.from_config(self._random.scheduler.config)
        files = self.files("scheduler")
        self._settings("scheduler")
        try:
            with quiet_libraries():
                scheduler = DDIMScheduler.from_config(DDIMScheduler.load_config(str(files.folder)))
            scheduler.set_timesteps(1)
            check_schedule(scheduler.timesteps, scheduler.alphas_cumprod)
        except Exception as error:  # as in `_load`
            raise self._not_loaded("scheduler", error) from error
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ConfigError(
                f"The base model's prediction_type is {scheduler.config.prediction_type!r}.",
                "Use a base model that predicts epsilon or v_prediction.",
            )
        return scheduler

    @property
    def prediction_type(self) -> str:
        return self.scheduler.config.prediction_type

    def _settings(self, name: str) -> dict[str, Any]:
        """What a part's description says, and its class where it says nothing."""
        if self._random is not None:
            return self._random.settings(name)
        if name not in self._described:
            path, part = self.files(name).folder / PARTS[name].required[-1], PARTS[name]
            self._described[name] = describe_part(path, part.cls, part.section, self._another(name))
        return self._described[name]

    @property
    def image_token_dim(self) -> int:
        """Width of the vision tower's hidden states, which is not loaded for it."""
        return self._settings("vision")["hidden_size"]

    @property
    def vae_scaling_factor(self) -> float:
        """Latents are the VAE's times this (0.18215 for Stable Diffusion 2)."""
        factor = float(self._settings("vae")["scaling_factor"])
        if factor <= 0:
            where = self.files("vae").folder
            raise UnavailableError(f"The VAE in '{where}' has a scaling_factor of {factor}.", self._another("vae"))
        return factor

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of the latents of a picture.

        Raises:
            ConfigError: a side that the VAE and the UNet cannot halve as often as they must.
            UnavailableError: parts that do not fit one another.
        """
        if wrong := misfit(self._settings("unet"), self._settings("vae"), self._settings("text_encoder")):
            raise UnavailableError(
                f"The parts of '{self.config.id}' do not belong together: {wrong}.",
                "Point to a complete model with --base-model FOLDER, or to another part with --set.",
            )
        scale = 2 ** (len(self._settings("vae")["block_out_channels"]) - 1)
        smallest = scale * 2 ** (len(self._settings("unet")["block_out_channels"]) - 1)
        for name, size in (("width", width), ("height", height)):
            if size % smallest:
                raise ConfigError(
                    f"A {name} of {size} pixels is not a multiple of {smallest}, which this base model needs.",
                    f"Use {max(round(size / smallest), 1) * smallest}.",
                )
        return height // scale, width // scale

    def size_of(self, settings: SampleConfig) -> tuple[int, int]:
        """Height and width of the latents of a picture; raises as `latent_size`."""
        side = self.config.resolution
        return self.latent_size(settings.width or side, settings.height or side)

    def release(self, *names: str) -> None:
        """Let loaded parts go, to free their memory."""
        for name in names:
            self.__dict__.pop(name, None)
        free_memory()  # an optimiser or a pipeline may hold itself, and a part with it

    @torch.inference_mode()
    def encode_moments(self, images: list[Image.Image], at_once: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the VAE posterior of each picture, unscaled.

        Args:
            images: RGB squares of `resolution` pixels.
            at_once: so many in a batch, of which a picture's numbers depend on by rounding alone.

        Returns:
            Two float32 CPU tensors of shape (pictures, 4, h, w).
        """
        means, stds = [], []
        for pixels in pixel_batches(images, at_once):
            posterior = self.vae.encode(pixels.to(self.placement.device, self.vae.dtype) * 2 - 1).latent_dist
            means.append(posterior.mean.float().cpu())
            stds.append(posterior.std.float().cpu())
        return torch.cat(means).clone(), torch.cat(stds).clone()

    @torch.inference_mode()
    def encode_image_tokens(self, images: list[Image.Image], at_once: int = 1) -> torch.Tensor:
        """The vision tower's last hidden states before its post layer norm, class token included.

        Args:
            images: RGB squares of `resolution` pixels.
            at_once: as of `encode_moments`.

        Returns:
            Float32 CPU tensor of shape (pictures, tokens, width).
        """
        size = self.vision.config.image_size
        tokens = []
        for pixels in pixel_batches(images, at_once):
            seen = clip_pixels(pixels, size, self.config.vision_antialias)
            seen = seen.to(self.placement.device, self.vision.dtype)
            tokens.append(self.vision(pixel_values=seen).last_hidden_state.float().cpu())
        return torch.cat(tokens).clone()

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Pictures of scaled latents, shape (B, 4, h, w), decoded one at a time."""
        return decode(self.vae, latents, self.vae_scaling_factor)

    def fingerprints(self, *names: str) -> dict[str, str]:
        """Fingerprints of the named parts (unet, vae, text_encoder, vision), the same for every file format.

        Each is found once.
        """
        for name in names:
            if name not in self._fingerprints:
                own = self._own_weights(name)
                with self.listener.working(f"Checking the weights of {title_of(name)}"):
                    self._fingerprints[name] = (
                        fingerprint(self.files(name), own)
                        if self._random is None
                        else fingerprint_of(self._random.models[name].state_dict(), own)
                    )
        return {name: self._fingerprints[name] for name in names}

    def _own_weights(self, name: str) -> Callable[[str], bool]:
        """Which tensors in a part's file belong to it, without the layers that `clip_skip` leaves out."""
        foreign = PARTS[name].foreign
        layers = self._text_layers() if name == "text_encoder" else None

        def own(tensor: str) -> bool:
            layer = re.search(r"encoder\.layers\.(\d+)\.", tensor)
            skipped = layer is not None and layers is not None and int(layer.group(1)) >= layers
            return not skipped and not (foreign and re.match(foreign, tensor))

        return own

    def _text_layers(self) -> int:
        """How many layers of the text encoder are in use."""
        return self._settings("text_encoder")["num_hidden_layers"] - self.config.clip_skip

    def manifest(self, fingerprints: dict[str, str]) -> dict[str, Any]:
        """What a bundle remembers of its base model; the revision is the commit where one is known."""
        id, revision = self.config.id, self.config.revision
        if self._random is None:
            files = self.files("unet")
            if files.source == self.source("unet").mirror:
                id, revision = files.source.id, files.source.revision
            revision = files.revision or revision
        return {"id": id, "revision": revision, "fingerprint": fingerprints}
