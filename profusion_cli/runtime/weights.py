"""PromptNet and subjects on disk: the authors' layout, and what our bundles hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from profusion_cli.bundle import Bundle, looks_like_bundle, read_bundle
from profusion_cli.bundle.kinds import PROMPTNET_FILE, VIEWS_FILE, WORD_FILE
from profusion_cli.bundle.refusal import show
from profusion_cli.config import BESIDE_BASE, UNTRAINED, BaseConfig, PromptNetSource
from profusion_cli.errors import BundleError, ConfigError, UnavailableError, first_line
from profusion_cli.files import STDIO, read_source
from profusion_cli.presets import local_path
from profusion_cli.runtime.architecture import MAX_LAYERS, PromptNetConfig, unet_architecture
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.descriptions import read_description
from profusion_cli.runtime.finding import find_files
from profusion_cli.runtime.hub import (
    Files,
    Source,
    file_sha256,
    load_bin,
    weight_paths,
)
from profusion_cli.runtime.parts import DIFFUSERS_WEIGHTS, parts_for
from profusion_cli.runtime.promptnet import PromptNet, float32_copies
from profusion_cli.runtime.views import Views

MAX_WORDS = 1024
MAX_LATENT_SIDE = 256
MAX_IMAGE_TOKENS = 1 << 14
"""Far beyond what photos and words of the Stable Diffusion 1 and 2 family have."""
_MAKE_AGAIN = "Make it again with `profusion pretrain` or `profusion import`."
RESIDUAL_HEADS = ("residual_projections", "mid_residual_projection")


@dataclass(frozen=True)
class LoadedPromptNet:
    """A PromptNet and where it came from.

    Args:
        promptnet: float32, on the CPU.
        source: for the manifest: kind, id and hashes.
        parents: SHA-256 of the bundle it was read from, if it was one.
        embedding_l2: lambda of its pre-training, as far as it is known.
    """

    promptnet: PromptNet
    source: dict[str, Any]
    parents: tuple[str, ...] = ()
    embedding_l2: float = 0.0


def shapes_of(bundle: Bundle, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in one file of a bundle; nothing is loaded."""
    return {tensor: shape for tensor, (_, shape) in bundle.shapes(name).items()}


def tensors_of(bundle: Bundle, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one (already verified) file of a bundle, as copies."""
    return safetensors.torch.load(bytes(bundle.read(name)))


def _without_memory(config: PromptNetConfig, shapes: Mapping[str, tuple[int, ...]], name: str) -> PromptNet:
    """A PromptNet on the meta device whose tensors have these shapes: nothing is allocated before that is certain.

    Raises:
        BundleError: they do not fit its description.
    """
    if config.layers > min(len(shapes), MAX_LAYERS):
        raise BundleError(
            f"The PromptNet in '{name}' is described with {config.layers} layers, and has {len(shapes)} tensors.",
            _MAKE_AGAIN,
        )
    try:
        with torch.device("meta"):
            promptnet = PromptNet(config)
    except Exception as error:  # what sizes do not go together shows deep inside torch
        reason = show(first_line(error))[1:-1]
        raise BundleError(
            f"The PromptNet in '{name}' is described by values that cannot be built: {reason}.", _MAKE_AGAIN
        ) from error
    own = {key: tuple(tensor.shape) for key, tensor in promptnet.state_dict().items()}
    wrong = [key for key in own | dict(shapes) if own.get(key) != shapes.get(key)]
    if wrong:
        raise BundleError(
            f"The PromptNet in '{name}' does not fit its own description: {len(wrong)} tensors differ, for example "
            f"{wrong[0]}.",
            _MAKE_AGAIN,
        )
    return promptnet


def _with_memory(promptnet: PromptNet, state: Mapping[str, torch.Tensor]) -> PromptNet:
    """The PromptNet with these weights as float32."""
    promptnet.load_state_dict(float32_copies(state), assign=True)
    return promptnet.eval()


def promptnet_from_bundle(bundle: Bundle) -> PromptNet:
    """The PromptNet of a `promptnet` or `subject` bundle, float32, on the CPU.

    Raises:
        BundleError: its tensors do not fit the architecture in its manifest.
    """
    try:
        config = PromptNetConfig(**bundle.manifest["promptnet"])
    except (TypeError, ConfigError) as error:
        reason = error.message if isinstance(error, ConfigError) else "It has other keys than a PromptNet."
        raise BundleError(
            f"The PromptNet in '{bundle.name}' is described in a way that nothing is built from: {reason}", _MAKE_AGAIN
        ) from error
    promptnet = _without_memory(config, shapes_of(bundle, PROMPTNET_FILE), bundle.name)
    return _with_memory(promptnet, tensors_of(bundle, PROMPTNET_FILE))


def read_word(bundle: Bundle, embedding_dim: int) -> torch.Tensor:
    """The token embeddings of a subject whose S* is an ordinary word, float32, shape (words, embedding_dim).

    Raises:
        BundleError: tensors that are missing, or that the text encoder cannot take.
    """
    shape = shapes_of(bundle, WORD_FILE).get("embedding", ())
    if len(shape) != 2 or not 0 < shape[0] <= MAX_WORDS or shape[1] != embedding_dim:
        raise BundleError(
            f"The word in '{bundle.name}' does not fit the base model's text encoder of width {embedding_dim}.",
            "Use the base model that it was made with.",
        )
    return tensors_of(bundle, WORD_FILE)["embedding"].float()


def read_views(bundle: Bundle, promptnet: PromptNet) -> Views:
    """The encoded reference views of a `subject` bundle.

    Raises:
        BundleError: tensors that are missing, or that its PromptNet cannot take.
    """
    held = shapes_of(bundle, VIEWS_FILE)
    names = ("latents_mean", "latents_std", "image_tokens")
    shapes = [held[name] for name in names if name in held]
    fits = len(shapes) == 3 and [len(shape) for shape in shapes] == [4, 4, 3]
    if fits:
        mean, std, image = shapes
        fits = mean == std and mean[0] == image[0] > 0 and mean[1] == promptnet.conv_in.in_channels
        fits = fits and max(mean[2:]) <= MAX_LATENT_SIDE
        fits = fits and 0 < image[1] <= MAX_IMAGE_TOKENS and image[2] == promptnet.config.image_token_dim
    try:
        if fits:
            promptnet.tokens_for(min(shapes[0][2:]))
    except ConfigError:
        fits = False
    if not fits:
        raise BundleError(
            f"The reference views in '{bundle.name}' do not fit its PromptNet.",
            "Make it again with `profusion finetune`.",
        )
    tensors = tensors_of(bundle, VIEWS_FILE)
    return Views(*(tensors[name].float() for name in names))


def read_official(source: Source, sha256: str | None = None) -> tuple[PromptNet, tuple[str, ...], dict[str, str]]:
    """A PromptNet in the authors' released layout (`config.json` and `.bin` or safetensors weights).

    Args:
        source: the folder or Hub id, and the sub-folder with the PromptNet.
        sha256: of the weights file, when it is pinned.

    Returns:
        The PromptNet (float32, CPU), the names of the dropped residual heads, and the SHA-256 of each file.

    Raises:
        UnavailableError: missing, damaged, not an official PromptNet, or not the pinned file.
    """
    files: Files = find_files(source, "The PromptNet", ("config.json",), DIFFUSERS_WEIGHTS)
    paths = weight_paths(files)
    hashes = {path.name: file_sha256(path) for path in [files.folder / "config.json", *paths]}
    if sha256 is not None and sha256 not in hashes.values():
        raise UnavailableError(
            f"The weights of '{source}' have SHA-256 {hashes[paths[0].name]}, and the preset pins {sha256}.",
            "Check where they come from; `--set promptnet.sha256=null` accepts them.",
        )
    config = read_description(files.folder / "config.json", "Fetch the file again.")
    state: dict[str, torch.Tensor] = {}
    for path in paths:
        try:
            state |= safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load_bin(path)
        except (SafetensorError, OSError) as error:
            raise UnavailableError(f"'{path}' cannot be read: {error}.", "Fetch the file again.") from error
    needed = ("prompt_channel", "region_kernel_size", "region_proj_channel")
    vision = state.get("vision_embedding.weight")
    if any(key not in config for key in needed) or vision is None or vision.ndim != 2:
        raise UnavailableError(
            f"'{source}' is not a PromptNet in the authors' layout.",
            "Give the folder or Hub id of their released pipeline, which has a sub-folder 'promptnet'.",
        )
    if not config.get("with_noise", False):
        raise UnavailableError(
            f"'{source}' is a PromptNet that does not see the noisy latents (with_noise is false).",
            "Only the released variant with with_noise=true is supported.",
        )
    dropped = tuple(name for name in state if name.startswith(RESIDUAL_HEADS))
    kept = {key: value for key, value in state.items() if key not in dropped}
    try:
        described = PromptNetConfig(
            unet=unet_architecture(config),
            image_token_dim=vision.shape[1],
            embedding_dim=config["prompt_channel"],
            region_kernel_size=config["region_kernel_size"],
            region_proj_channels=config["region_proj_channel"],
        )
        promptnet = _without_memory(described, {key: tuple(value.shape) for key, value in kept.items()}, str(source))
    except (BundleError, ConfigError) as error:
        raise UnavailableError(error.message, "Check that the weights and config.json belong together.") from None
    return _with_memory(promptnet, kept), dropped, hashes


def load_promptnet(config: PromptNetSource, base: BaseModel, seed: int) -> LoadedPromptNet:
    """The PromptNet that a configuration names.

    Args:
        config: see `PromptNetSource`.
        base: the base model it must fit.
        seed: of the new parameters of an untrained one.

    Raises:
        UnavailableError: none named, or it cannot be had.
        BundleError: a file that is no usable promptnet bundle, or one for another base model.
    """
    if config.weights is None:
        raise UnavailableError(
            f"The preset has no pre-trained PromptNet for the base model '{base.config.id}'.",
            "Make one with `profusion pretrain` or `profusion import` and give it with --promptnet FILE, or use "
            "another preset (`profusion presets` lists them).",
        )
    if config.weights == UNTRAINED:
        promptnet = PromptNet.from_unet(
            base.unet,
            image_token_dim=base.image_token_dim,
            embedding_dim=base.text.embedding_dim,
            region_kernel_size=config.region_kernel_size,
            region_proj_channels=config.region_proj_channels,
            seed=seed,
        )
        return LoadedPromptNet(promptnet.eval(), {"weights": UNTRAINED, "seed": seed})
    path = local_path(config.weights)
    if path == STDIO or os.path.isfile(path):
        data, name = read_source(path), "standard input" if path == STDIO else path
        if not looks_like_bundle(data):
            raise BundleError(f"'{name}' is not a bundle.", "Give a .pfz file, or a folder in the authors' layout.")
        bundle = read_bundle(data, name).require("promptnet")
        check_base(bundle, base, parts_for("promptnet"))
        promptnet = promptnet_from_bundle(bundle)
        origin = {"weights": os.path.basename(path), "sha256": bundle.sha256}
        pretrained = bundle.manifest["config"].get("pretrain")
        embedding_l2 = pretrained.get("embedding_l2", 0.0) if isinstance(pretrained, dict) else 0.0
        return LoadedPromptNet(promptnet, origin, (bundle.sha256,), embedding_l2)
    source = official_source(config, base.config)
    promptnet, _, hashes = read_official(source, config.sha256)
    return LoadedPromptNet(promptnet, {"weights": source.id, "files": hashes})


def official_source(config: PromptNetSource, base: BaseConfig) -> Source | None:
    """Where a PromptNet in the authors' layout comes from; None: it is a bundle, untrained, or there is none."""
    if config.weights in (None, UNTRAINED) or local_path(config.weights) == STDIO:
        return None
    if os.path.isfile(local_path(config.weights)):
        return None
    beside = config.weights == BESIDE_BASE
    place, revision = (base.id, base.revision) if beside else (config.weights, config.revision)
    return Source(place, revision, config.subfolder, "--promptnet FILE|FOLDER")


def check_fit(promptnet: PromptNet, base: BaseModel, with_vision: bool = True) -> None:
    """PromptNet's widths agree with the base model's; the vision tower is loaded only if it is asked about.

    Raises:
        BundleError: they do not.
    """
    pairs = {
        "word embeddings": (promptnet.config.embedding_dim, base.text.embedding_dim),
        "latent channels": (promptnet.conv_in.in_channels, base.unet.config.in_channels),
    }
    if with_vision:
        pairs["image tokens"] = (promptnet.config.image_token_dim, base.image_token_dim)
    for what, (own, theirs) in pairs.items():
        if own != theirs:
            raise BundleError(
                f"The PromptNet is made for {what} of width {own}, and the base model '{base.config.id}' has {theirs}.",
                "Use the base model that it was trained with.",
            )


def check_base(bundle: Bundle, base: BaseModel, parts: tuple[str, ...]) -> None:
    """The bundle was made for this base model, as far as it remembers one.

    Raises:
        BundleError: a part of the base model has other weights.
    """
    missing = [part for part in parts if part not in bundle.manifest["base"]["fingerprint"]]
    if bundle.kind == "subject" and missing:
        raise BundleError(
            f"'{bundle.name}' does not say which {missing[0]} it was made for.",
            "Make it again with `profusion finetune`.",
        )
    remembered = {part: digits for part, digits in bundle.manifest["base"]["fingerprint"].items() if part in parts}
    present = base.fingerprints(*remembered)
    for part, digits in remembered.items():
        if present[part] != digits:
            raise BundleError(
                f"'{bundle.name}' was made for the base model '{bundle.manifest['base']['id']}', whose {part} has "
                f"other weights than that of '{base.config.id}' (fingerprint {digits}, not {present[part]}).",
                "Use the same base model (--base-model), or make the bundle again for this one.",
            )


def promptnet_section(promptnet: PromptNet) -> dict[str, Any]:
    """The architecture, for a manifest."""
    return asdict(promptnet.config)


def pack(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Tensors as safetensors bytes, on request in another floating dtype, and with texts in its header."""
    own = {name: tensor.detach().cpu().to(dtype or tensor.dtype) for name, tensor in sorted(tensors.items())}
    own = {name: tensor.contiguous() for name, tensor in own.items()}
    return safetensors.torch.save(own, None if metadata is None else dict(metadata))
