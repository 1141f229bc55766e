"""The trainings of the face world, one function each; every one goes on from its last checkpoint."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save
from transformers import CLIPModel, CLIPTextModel, CLIPVisionModel

from profusion_cli.faceworld import data
from profusion_cli.faceworld.captions import caption
from profusion_cli.faceworld.damage import DamagedStream
from profusion_cli.faceworld.disturbance import disturbed, worn
from profusion_cli.faceworld.fitting import Fit, compute_dtype
from profusion_cli.faceworld.judges import (
    CLASSES,
    AttributeJudge,
    IdentityJudge,
    Judges,
    StructureJudge,
    save_judge,
    save_readable,
)
from profusion_cli.faceworld.measure import readable_traits, reading
from profusion_cli.faceworld.stack import (
    Scale,
    make_clip,
    make_tokenizer,
    make_unet,
    make_vae,
    save_half,
    save_index,
    token_ids,
)
from profusion_cli.files import atomic_output
from profusion_cli.runtime.pixels import clip_pixels
from profusion_cli.runtime.random_base import make_scheduler
from profusion_cli.runtime.schedule import add_noise

HIDDEN = -100
"""In place of the class of what cannot be seen."""
KL_WEIGHT = 1.0e-6
MIN_SNR_GAMMA = 5.0
CAPTION_DROPOUT = 0.1
FEW_TRAITS = (0, 0, 0, 1, 2, 3, 4)
MANY_TRAITS = (0, 0, 2, 3, 4, 5)
"""How many traits captions name: the UNet learns them much later than it learns styles, places and clothes."""


@dataclass
class Workshop:
    """Where the stages find what earlier ones made.

    Args:
        work: folder of data, checkpoints and finished networks in float32.
        out: folder of the result.
        scale: sizes and lengths.
        device: where it runs.
        say: told how it goes.
    """

    work: Path
    out: Path
    scale: Scale
    device: torch.device
    say: Callable[[str], None]

    @cached_property
    def pictures(self) -> np.ndarray:
        return data.pictures(self.work, self.scale.pictures, self.scale.side, self.say)

    def choose(self, name: str, generator: torch.Generator) -> torch.Tensor:
        """The numbers of the pictures of one step."""
        return torch.randint(self.scale.pictures, (self.scale.batch[name],), generator=generator)

    def fit(self, name: str, model: torch.nn.Module, learning_rate: float) -> Fit:
        return Fit(name, model, self.work, self.scale.steps[name], learning_rate, self.device, self.say)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """In the precision that networks train in; pictures with their channels last."""
        layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        return tensor.to(self.device, compute_dtype(self.device)).contiguous(memory_format=layout)


@dataclass
class Shown:
    """The pictures of each step of a stage, one step after the other.

    Args:
        stream: draws them.
        steps: of the stage.
    """

    stream: data.Stream
    steps: int
    _drawn: Iterator[torch.Tensor] | None = None

    def at(self, step: int) -> tuple[list[int], torch.Tensor]:
        """The numbers and the pixels, shape (B, 3, side, side) in [0, 1], of the pictures of this step."""
        if self._drawn is None:
            self._drawn = self.stream.steps(step, self.steps)
        return self.stream.numbers(step), data.to_pixels(next(self._drawn))


def captions_of(numbers: torch.Tensor, rng: random.Random, traits: Sequence[int]) -> list[str]:
    """Fresh captions of pictures; each names so many traits of the person as is drawn from `traits`."""
    shown = [data.example(number) for number in numbers.tolist()]
    return [caption(one.who, one.context, rng, rng.choice(traits)) for one in shown]


def train_clip(shop: Workshop) -> None:
    """Text encoder and vision tower, by contrast of pictures and captions that name many traits."""
    torch.manual_seed(1)
    tokenizer = make_tokenizer(shop.out / "tokenizer")
    model = make_clip(shop.scale, len(tokenizer))

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        numbers = shop.choose("clip", generator)
        texts = captions_of(numbers, random.Random(f"clip {step}"), (2, 3, 4, 5, 6) if step % 2 == 0 else FEW_TRAITS)
        ids = token_ids(tokenizer, texts).to(shop.device)
        pixels = data.pixels(shop.pictures, numbers)
        images = shop.to_device(clip_pixels(pixels, shop.scale.side, antialias=False))
        image = F.normalize(model.get_image_features(pixel_values=images).pooler_output.float(), dim=-1)
        text = F.normalize(model.get_text_features(input_ids=ids).pooler_output.float(), dim=-1)
        logits = model.logit_scale.float().exp().clamp(max=50) * image @ text.T
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    trained: CLIPModel = shop.fit("clip", model, 1.0e-3).run(loss_of)  # type: ignore[assignment]
    settings = trained.config.text_config
    settings.num_hidden_layers = 3
    text = CLIPTextModel(settings)
    weights = {key.removeprefix("text_model."): value for key, value in trained.text_model.state_dict().items()}
    wanted = text.state_dict()
    prefix = "text_model." if next(iter(wanted)).startswith("text_model.") else ""
    text.load_state_dict({f"{prefix}{key}": value for key, value in weights.items() if f"{prefix}{key}" in wanted})
    save_half(text, shop.out / "text_encoder")
    vision = CLIPVisionModel(trained.config.vision_config)
    prefix = "vision_model." if next(iter(vision.state_dict())).startswith("vision_model.") else ""
    vision.load_state_dict({f"{prefix}{key}": value for key, value in trained.vision_model.state_dict().items()})
    save_half(vision, shop.out / "vision")


def train_vae(shop: Workshop) -> None:
    """Reconstruction (squared and absolute error) with a little KL."""
    torch.manual_seed(2)
    model = make_vae(shop.scale)

    with torch.no_grad():  # nearly no noise at first: with the usual deviation of 1 it learns little else but colours
        model.quant_conv.weight[4:] *= 0.05
        model.quant_conv.bias[4:] = -6

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        images = shop.to_device(data.pixels(shop.pictures, shop.choose("vae", generator)) * 2 - 1)
        posterior = model.encode(images).latent_dist
        noise = shop.to_device(torch.randn(posterior.mean.shape, generator=generator))
        decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()
        target = images.float()
        loss = 0.2 * (decoded - target).abs().mean() + 2 * (decoded - target).square().mean()
        return loss + KL_WEIGHT * posterior.kl().float().mean()

    vae: AutoencoderKL = shop.fit("vae", model, 2.0e-3).run(loss_of)  # type: ignore[assignment]
    (shop.work / "latents.safetensors").unlink(missing_ok=True)
    moments = latents(shop, vae)
    sample = moments["mean"].float() + moments["std"].float() * torch.randn(
        moments["std"].shape, generator=torch.Generator().manual_seed(0)
    )
    vae.register_to_config(scaling_factor=round(1 / float(sample.std()), 5))
    save_half(vae, shop.out / "vae")


def latents(shop: Workshop, vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """What `encode` gives, from the disk where it was called before."""
    path = shop.work / "latents.safetensors"
    if not path.exists():
        made = save(encode(shop, vae))
        with atomic_output(path) as file:
            file.write(made)
    return load_file(path)


@torch.inference_mode()
def encode(shop: Workshop, vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """Mean and standard deviation of the latents of all training pictures, unscaled, in float16."""
    model = vae.to(shop.device, compute_dtype(shop.device)).to(memory_format=torch.channels_last)
    means, stds = [], []
    for start in range(0, shop.scale.pictures, 64):
        numbers = torch.arange(start, min(start + 64, shop.scale.pictures))
        posterior = model.encode(shop.to_device(data.pixels(shop.pictures, numbers) * 2 - 1)).latent_dist
        means.append(posterior.mean.half().cpu().contiguous())
        stds.append(posterior.std.half().cpu().contiguous())
        if start % 6400 == 0:
            shop.say(f"latents: {start} of {shop.scale.pictures}")
    vae.float().to(memory_format=torch.contiguous_format)
    return {"mean": torch.cat(means), "std": torch.cat(stds)}


def train_unet(shop: Workshop, inpainting: bool = False) -> None:
    """The UNet on captions; for inpainting with a hole, and what it leaves of the picture."""
    name = "inpaint" if inpainting else "unet"
    torch.manual_seed(4 if inpainting else 3)
    tokenizer = make_tokenizer(shop.out / "tokenizer")
    text = CLIPTextModel.from_pretrained(str(shop.out / "text_encoder")).to(shop.device, compute_dtype(shop.device))
    text = text.eval().requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(str(shop.out / "vae")).eval().requires_grad_(False)
    moments = latents(shop, vae)
    vae = vae.to(shop.device, compute_dtype(shop.device))
    factor = vae.config.scaling_factor
    scheduler = make_scheduler()
    alphas = scheduler.alphas_cumprod
    model = make_unet(shop.scale, inpainting)

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        numbers = shop.choose(name, generator)
        rng = random.Random(f"{name} {step}")
        captions = captions_of(numbers, rng, FEW_TRAITS if inpainting else MANY_TRAITS)
        texts = ["" if rng.random() < CAPTION_DROPOUT else one for one in captions]
        ids = token_ids(tokenizer, texts)
        with torch.no_grad():
            states = text(input_ids=ids.to(shop.device)).last_hidden_state
        # half of the captions end at their end token, as in training of PromptNet; half are padded, as in sampling
        bare = torch.rand(len(ids), 1, generator=generator) < 0.5
        mask = ~bare | (torch.arange(ids.shape[1])[None] <= ids.argmax(1, keepdim=True))
        shape = (len(ids), *moments["mean"].shape[1:])
        latents = moments["mean"][numbers].float()
        latents = (latents + moments["std"][numbers].float() * torch.randn(shape, generator=generator)) * factor
        noise = torch.randn(shape, generator=generator)
        timesteps = torch.randint(1000, (len(ids),), generator=generator)
        noisy = add_noise(latents, noise, timesteps, alphas)
        if inpainting:
            holes = random_holes(numbers, shop.scale.side, rng)
            kept = shop.to_device((data.pixels(shop.pictures, numbers) * 2 - 1) * (1 - holes))
            with torch.no_grad():
                seen = vae.encode(kept).latent_dist.mean.float().cpu() * factor
            noisy = torch.cat([noisy, F.interpolate(holes, shape[-2:]), seen], 1)
        prediction = model(
            shop.to_device(noisy), timesteps.to(shop.device), states, encoder_attention_mask=mask.to(shop.device)
        ).sample
        snr = alphas[timesteps] / (1 - alphas[timesteps])
        weight = (snr.clamp(max=MIN_SNR_GAMMA) / snr).to(shop.device)
        return (weight * (prediction.float() - noise.to(shop.device)).square().mean((1, 2, 3))).mean() / weight.mean()

    unet = shop.fit(name, model, 1.0e-3).run(loss_of)
    save_half(unet, shop.out / ("inpainting" if inpainting else "unet"))
    scheduler.save_pretrained(shop.out / "scheduler")
    save_index(shop.out)


def train_promptnet(shop: Workshop) -> None:
    """PromptNet on portraits, by the ordinary command."""
    listing = data.draw_portraits(shop.work / "portraits", shop.scale.portraits, shop.scale.side)
    target = shop.out / "promptnet.pfz"
    work, name = shop.work / "promptnet", "promptnet"
    arguments = [
        *("pretrain", str(listing), "-o", str(target), "--work", str(work), "--preset", "faceworld"),
        *("--base-model", str(shop.out), "--cache", str(shop.work / "cache"), "--device", str(shop.device)),
        *("--dtype", str(compute_dtype(shop.device)).removeprefix("torch.")),
        *("--steps", str(shop.scale.steps[name]), "--batch-size", str(shop.scale.batch[name]), "--force"),
    ]
    if any(work.glob("checkpoint-*")):
        arguments = [*arguments[:-1], "--resume", "--force"]
    subprocess.run([sys.executable, "-m", "profusion_cli", *arguments], check=True)


def random_holes(numbers: torch.Tensor, side: int, rng: random.Random) -> torch.Tensor:
    """What is to be painted of these training pictures, 1 in the hole; shape (B, 1, side, side).

    Mostly all but the head, as augmentation asks for: of a model that never saw a whole head kept, heads get a
    second outline. Sometimes everything, an ellipse, or all but an ellipse.
    """
    y, x = np.mgrid[:side, :side] / (side - 1)
    holes = []
    for number in numbers.tolist():
        kind = rng.random()
        if kind < 0.6:
            holes.append(~data.head_of(number, side=side))
            continue
        cx, cy = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)
        rx, ry = rng.uniform(0.12, 0.4), rng.uniform(0.2, 0.5)
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        holes.append(np.ones_like(inside) if kind < 0.7 else inside if kind < 0.8 else ~inside)
    return torch.from_numpy(np.stack(holes))[:, None].float()


def train_attributes(shop: Workshop) -> None:
    """The judge of attributes and traits."""
    torch.manual_seed(5)
    model = AttributeJudge(shop.scale.judge_width)
    shown = Shown(data.Stream(shop.scale.batch["attributes"], shop.scale.side), shop.scale.steps["attributes"])

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        numbers, pixels = shown.at(step)
        logits, wanted = model(shop.to_device(disturbed(pixels, generator))), labels_of(numbers)
        losses = [
            F.cross_entropy(logits[name].float(), wanted[name].to(shop.device), ignore_index=HIDDEN) for name in CLASSES
        ]
        return torch.stack(losses).mean()

    save_judge(shop.fit("attributes", model, 1.5e-3).run(loss_of), shop.out / "judges")  # type: ignore[arg-type]


def labels_of(numbers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The class of every attribute and trait of these pictures, shape (B,); `HIDDEN` where it cannot be seen."""
    labels: dict[str, list[int]] = {name: [] for name in CLASSES}
    for one in map(data.example, numbers):
        hidden = one.context.hidden()
        for name, value in {**one.context.attributes(), **one.who.traits()}.items():
            labels[name].append(HIDDEN if name in hidden else CLASSES[name].index(value))
    return {name: torch.tensor(values) for name, values in labels.items()}


def find_readable(shop: Workshop) -> None:
    """Which traits the judge of attributes can be believed about, on people of the split `validation`."""
    found = reading(Judges(shop.out / "judges"), range(min(shop.scale.pictures, 500)), side=shop.scale.side)
    save_readable(readable_traits(found), shop.out / "judges")


def train_structure(shop: Workshop) -> None:
    """The judge of structure: pictures against the same ones damaged."""
    torch.manual_seed(7)
    model = StructureJudge(shop.scale.structure_width)
    shown = Shown(DamagedStream(shop.scale.batch["structure"], shop.scale.side), shop.scale.steps["structure"])

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        pixels = shown.at(step)[1]
        intact = (torch.arange(len(pixels)) < len(pixels) // 2).float()
        logits = model(shop.to_device(disturbed(worn(pixels, generator), generator)))
        return F.binary_cross_entropy_with_logits(logits, intact.to(shop.device))

    save_judge(shop.fit("structure", model, 1.5e-3).run(loss_of), shop.out / "judges")  # type: ignore[arg-type]


def train_identities(shop: Workshop) -> None:
    """The judge of identity: two pictures of each of many people, by contrast."""
    torch.manual_seed(6)
    model = IdentityJudge(shop.scale.judge_width)
    people, per = shop.scale.pictures // data.PER_IDENTITY, data.PER_IDENTITY

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randperm(people, generator=generator)[: shop.scale.batch["identities"]]
        first = torch.randint(per, (len(chosen),), generator=generator)
        second = (first + torch.randint(1, per, (len(chosen),), generator=generator)) % per
        numbers = torch.cat([chosen * per + first, chosen * per + second])
        vectors = model(shop.to_device(disturbed(data.pixels(shop.pictures, numbers), generator)))
        one, two = vectors.chunk(2)
        logits = one @ two.T * 12
        labels = torch.arange(len(chosen), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    save_judge(shop.fit("identities", model, 1.5e-3).run(loss_of), shop.out / "judges")  # type: ignore[arg-type]


STAGES: dict[str, Callable[[Workshop], None]] = {
    "clip": train_clip,
    "vae": train_vae,
    "unet": train_unet,
    "inpaint": lambda shop: train_unet(shop, inpainting=True),
    "attributes": train_attributes,
    "identities": train_identities,
    "structure": train_structure,
    "readable": find_readable,
    "promptnet": train_promptnet,
}


def run_stage(shop: Workshop, name: str) -> None:
    """Run one stage, unless it is done."""
    mark = shop.work / f"{name}.done"
    if mark.exists():
        shop.say(f"{name}: done already.")
        return
    STAGES[name](shop)
    mark.touch()
