"""Pre-training PromptNet on many pictures: UNet, VAE and text encoder stay frozen (arXiv 2305.13579, section 3.1)."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import nn

from profusion_cli.bundle import make_bundle
from profusion_cli.bundle.kinds import PROMPTNET_FILE
from profusion_cli.config import Config, PretrainConfig
from profusion_cli.console import Output
from profusion_cli.dataset import Dataset, Listing, epoch_order, load_square, make_dataset, scan_pictures
from profusion_cli.errors import ConfigError, DeviceError, InputError, Interrupted, OutputError
from profusion_cli.files import locked, output_hint
from profusion_cli.images import contact_sheet
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel, quiet_libraries
from profusion_cli.runtime.checkpoints import (
    Checkpoint,
    check_settings,
    checkpoint_files,
    newest_checkpoint,
    save_checkpoint,
)
from profusion_cli.runtime.denoiser import PromptDenoiser, PromptNetSubject, tokenize_prompt
from profusion_cli.runtime.device import (
    DTYPES,
    epoch_generator,
    picture_generator,
    resolve_placement,
    step_generator,
)
from profusion_cli.runtime.encodings import Encodings, cache_folder, clear_parts
from profusion_cli.runtime.fusion import Guidance, sample_fusion
from profusion_cli.runtime.log import EVENTS, LOG, SHEET, Log
from profusion_cli.runtime.parts import WEIGHTY, parts_for
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.training import (
    Batch,
    Step,
    TrainingObjective,
    choose_attention,
    concept_tokens,
    fit,
    make_accelerator,
    select_trainable,
)
from profusion_cli.runtime.weights import pack, promptnet_section

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
SHEET_PICTURES = 4
NAMED_UNREADABLE = 5


def warmed_up(config: PretrainConfig, step: int) -> float:
    """The learning rate of a step (from 0): linear to its full height over the warm-up, then constant."""
    return config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))


class Average:
    """Exponential moving average of PromptNet's weights.

    The decay of step n (from 1) is min(decay, n / (n + 9)), so that a short training is not mostly its
    random start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, number: int) -> None:
        """Take in the weights after step `number`."""
        decay = min(self.decay, number / (number + 9))
        for name, value in network.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)


class Interrupts:
    """The first SIGINT or SIGTERM asks to stop after the step; another one stops at once. A context manager.

    Attributes:
        asked: the number of the signal, or 0.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, tell: bool, processes: int) -> None:
        self.asked = 0
        self._tell, self._processes, self._at = tell, processes, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.asked:
            # torchrun passes on an interrupt that the terminal has given to every process already
            if self._processes > 1 and time.monotonic() - self._at < 2:
                return
            raise Interrupted(number)
        self.asked, self._at = number, time.monotonic()
        if self._tell:
            os.write(2, b"Finishing this step and saving a checkpoint; interrupt again to stop at once.\n")


@contextlib.contextmanager
def claimed_work(work: Path, resume: bool, force: bool) -> Iterator[None]:
    """The folder for checkpoints, made if need be, and locked for this training; what is in it stays.

    Raises:
        OutputError: a training is in it (without `resume` and `force`) or running, or it cannot be made or written.
    """
    if not (resume or force) and (checkpoint_files(work) or (work / LOG).exists()):
        raise OutputError(
            f"There is a training in '{work}' already.",
            "Go on with it (--resume), overwrite it (--force), or choose another --work.",
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder '{work}' cannot be made: {error.strerror}.", "Choose another --work.") from error
    if not os.access(work, os.W_OK):
        raise OutputError(f"The folder '{work}' cannot be written.", "Choose another --work.")
    try:
        with locked(work, f"Another training is running in '{work}'.", "Wait for its end, or choose another --work."):
            clear_parts(work)
            yield
    finally:
        with contextlib.suppress(OSError):  # there is something in it
            work.rmdir()


def clear_work(work: Path) -> None:
    """Remove an earlier training, before a new one begins in its folder.

    Raises:
        OutputError: something cannot be removed.
    """
    try:
        ours = (LOG, SHEET.format("[0-9]" * 8 + "*"), f"{EVENTS}*")
        for path in [*checkpoint_files(work), *(path for pattern in ours for path in work.glob(pattern))]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"'{error.filename}' of an earlier training cannot be removed: {error.strerror}.", "Choose another --work."
        ) from error


@contextlib.contextmanager
def lost_processes(processes: int) -> Iterator[None]:
    """A process that ends breaks the connections of the others, which is no fault of theirs.

    Raises:
        DeviceError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        lost = processes > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error))
        if not lost:
            raise
        raise DeviceError(
            f"Another process of this training has ended: {str(error).splitlines()[0]}",
            "Its own message says why; mend that, and go on with --resume.",
        ) from error


def read_dataset(accelerator: Accelerator, listing: Listing, output: Output) -> tuple[Dataset, list[dict[str, str]]]:
    """The readable pictures, and path and problem of the others; every process reads its share of them.

    Raises:
        InputError: none can be read.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    share = listing.paths[rank::processes]
    with output.progress("Reading pictures", len(share)) as progress:
        scanned = scan_pictures(share, lambda done: progress(done, ""))
    if processes > 1:
        gathered = iter(gather_object([list(zip(range(rank, len(listing.paths), processes), scanned, strict=True))]))
        scanned = [one for _, one in sorted((pair for part in gathered for pair in part), key=lambda pair: pair[0])]
    pairs = zip(listing.paths, scanned, strict=True)
    bad = [{"path": path, "problem": one.problem} for path, one in pairs if one.sha256 is None]
    dataset = make_dataset(listing, scanned)
    if bad:
        output.warn(f"{len(bad)} of {len(scanned)} pictures cannot be read and are left out:")
        for one in bad[:NAMED_UNREADABLE]:
            output.note(f"  {one['problem']}")
        if len(bad) > NAMED_UNREADABLE:
            output.note(f"  and {len(bad) - NAMED_UNREADABLE} more")
    output.note(f"Learning from {len(dataset)} picture(s), {dataset.paired()} of them with another one as reference.")
    return dataset, bad


class Batches:
    """This process's share of the batch of a step; a function of (seed, step) and the pictures.

    Every process draws the random numbers of the whole batch and takes its part of them.
    """

    def __init__(
        self,
        encodings: Encodings,
        batch_size: int,
        seed: int,
        latent_shape: tuple[int, int, int],
        scaling_factor: float,
        train_timesteps: int,
        share: slice,
    ) -> None:
        self.encodings, self.batch_size, self.seed, self.share = encodings, batch_size, seed, share
        self.latent_shape, self.scaling_factor = latent_shape, scaling_factor
        self.train_timesteps = train_timesteps
        self._order = lru_cache(maxsize=2)(self._order_of)

    def _order_of(self, epoch: int) -> list[tuple[int, int]]:
        generator = epoch_generator(self.seed, epoch)
        return epoch_order(
            self.encodings.dataset,
            lambda count: torch.randperm(count, generator=generator).tolist(),
            lambda count: int(torch.randint(count, (), generator=generator)),
        )

    def pairs(self, step: int) -> list[tuple[int, int]]:
        """(target, reference) of each picture of this process's share."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)[self.share]
        size = len(self.encodings.dataset)
        return [self._order(position // size)[position % size] for position in positions]

    def __call__(self, step: int) -> Batch:
        generator = step_generator(self.seed, step)
        shape = (self.batch_size, *self.latent_shape)
        drawn = [torch.randn(shape, generator=generator)[self.share] for _ in range(3)]
        timesteps = torch.randint(self.train_timesteps, (self.batch_size,), generator=generator)[self.share]
        pairs = self.pairs(step)
        needed = {index: i for i, index in enumerate(dict.fromkeys(index for pair in pairs for index in pair))}
        views = self.encodings.views(list(needed))
        self.encodings.prefetch(index for pair in self.pairs(step + 1) for index in pair)
        target, reference = (torch.tensor([needed[pair[i]] for pair in pairs]) for i in (0, 1))
        return Batch(
            ref_latents=views.draw_latents(reference, drawn[0], self.scaling_factor),
            image_tokens=views.image_tokens[reference],
            target_latents=views.draw_latents(target, drawn[1], self.scaling_factor),
            noise=drawn[2],
            timesteps=timesteps,
        )


def settings_of(config: Config, base: BaseModel, dataset: Dataset) -> dict[str, Any]:
    """What the weights after a step depend on beyond rounding: neither the device nor how a batch is split."""
    own = config.pretrain
    names = ("batch_size", "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "ema_decay")
    return {
        **{f"pretrain.{name}": getattr(own, name) for name in (*names, "embedding_l2")},
        "seed": config.seed,
        "dtype": str(base.placement.dtype).removeprefix("torch."),
        "concept_prompt": config.concept_prompt,
        "promptnet.region_kernel_size": config.promptnet.region_kernel_size,
        "promptnet.region_proj_channels": config.promptnet.region_proj_channels,
        "base.resolution": config.base.resolution,
        "base.clip_skip": config.base.clip_skip,
        "base.vision_antialias": config.base.vision_antialias,
        **{f"base.{name} (fingerprint)": digits for name, digits in base.fingerprints(*WEIGHTY).items()},
        "pictures": len(dataset.paths),
        "pictures (digest)": dataset.digest,
    }


class Trainer:
    """PromptNet, its optimiser and its average: what a checkpoint holds."""

    def __init__(self, config: Config, base: BaseModel, accelerator: Accelerator, settings: dict[str, Any]) -> None:
        self.config, self.base, self.accelerator, self.settings = config, base, accelerator, settings
        own, placement = config.pretrain, base.placement
        source = config.promptnet
        self.promptnet = PromptNet.from_unet(
            base.unet,
            image_token_dim=base.vision.config.hidden_size,
            embedding_dim=base.text.embedding_dim,
            region_kernel_size=source.region_kernel_size,
            region_proj_channels=source.region_proj_channels,
            seed=config.seed,
        )
        height, width = base.latent_size(config.base.resolution, config.base.resolution)
        self.latent_shape = (base.unet.config.in_channels, height, width)
        self.tokens = concept_tokens(base.text, config.concept_prompt, self.promptnet.tokens_for(height))
        with quiet_libraries():
            self.unet = base.unet.to(placement.device, placement.dtype)
        select_trainable(self.promptnet, self.unet, "promptnet")
        if own.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.promptnet.enable_gradient_checkpointing()
        choose_attention(placement, self.promptnet, self.unet)
        self.unet.train()
        self.promptnet.train()
        self.average: Average | None = None
        self.start = 0

    def prepare(self, resumed: Checkpoint | None) -> None:
        """Build objective and optimiser, from a checkpoint's state if there is one."""
        own, base = self.config.pretrain, self.base
        if resumed is not None:
            self.promptnet.load_state_dict(resumed.part("promptnet"))
            self.start = resumed.step
        objective = TrainingObjective(
            self.promptnet,
            self.unet,
            base.text,
            self.tokens,
            base.scheduler.alphas_cumprod.to(base.placement.device),
            base.prediction_type,
            own.embedding_l2,
        ).to(base.placement.device)
        optimizer = torch.optim.AdamW(self.promptnet.parameters(), lr=own.learning_rate, weight_decay=own.weight_decay)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        if own.ema_decay and self.accelerator.is_main_process:
            self.average = Average(self.promptnet, own.ema_decay)
        if resumed is None:
            return
        moments = {name: resumed.part(name) for name in MOMENTS}
        for name, parameter in self.promptnet.named_parameters():
            optimizer.state[parameter] = {
                "step": moments["step"][name],  # stays on the CPU, where AdamW wants it
                "exp_avg": moments["exp_avg"][name].to(parameter.device),
                "exp_avg_sq": moments["exp_avg_sq"][name].to(parameter.device),
            }
        if self.average is not None:
            self.average.weights = {
                name: value.to(base.placement.device) for name, value in resumed.part("ema").items()
            }
        if self.accelerator.scaler is not None and resumed.scaler is not None:
            self.accelerator.scaler.load_state_dict(resumed.scaler)

    def checkpoint(self, step: int) -> Checkpoint:
        """The state after a step."""
        tensors = {f"promptnet.{name}": value for name, value in self.promptnet.state_dict().items()}
        if self.average is not None:
            tensors |= {f"ema.{name}": value for name, value in self.average.weights.items()}
        state = getattr(self.optimizer, "optimizer", self.optimizer).state
        for name, parameter in self.promptnet.named_parameters():
            for moment in MOMENTS:
                empty = torch.zeros(()) if moment == "step" else torch.zeros_like(parameter)
                # empty where float16's gradient scaler has skipped every step so far
                tensors[f"{moment}.{name}"] = state[parameter].get(moment, empty) if parameter in state else empty
        scaler = self.accelerator.scaler
        return Checkpoint(step, self.settings, tensors, None if scaler is None else scaler.state_dict())

    def weights(self) -> Mapping[str, torch.Tensor]:
        """What the training is for: the average where there is one."""
        return self.promptnet.state_dict() if self.average is None else self.average.weights


@torch.inference_mode()
def draw_sheet(trainer: Trainer, encodings: Encodings) -> Image.Image:
    """A few pictures, and what "a photo of S*" draws of each by plain classifier-free guidance."""
    config, base = trainer.config, trainer.base
    promptnet = copy.deepcopy(trainer.promptnet)
    promptnet.load_state_dict(trainer.weights())
    promptnet.eval()
    chosen = list(encodings.dataset.targets[:SHEET_PICTURES])
    views = encodings.views(chosen)
    prompt = parse_prompt(config.concept_prompt)
    squares, drawn = [], []
    trainer.unet.eval()
    for j, index in enumerate(chosen):
        subject = PromptNetSubject(
            promptnet,
            (views.latents_mean[j][None] * base.vae_scaling_factor).to(base.placement.device),
            views.image_tokens[j][None].to(base.placement.device),
            config.class_word,
        )
        tokens = tokenize_prompt(prompt, base.text, [config.class_word], [subject.words])
        denoiser = PromptDenoiser(
            trainer.unet, base.text, [subject], tokens, base.scheduler.alphas_cumprod, base.prediction_type
        )
        noise = torch.randn((1, *trainer.latent_shape), generator=picture_generator(config.seed, j))
        latents = sample_fusion(
            denoiser,
            noise.to(base.placement.device),
            base.timesteps(config.pretrain.sample_steps),
            base.scheduler.alphas_cumprod,
            Guidance(config.sample.subject_guidance[:1], 0.0, 1.0, 1.0),
            lambda i, k, noise=noise: noise,
            final_alpha_cumprod=float(base.scheduler.final_alpha_cumprod),
            fusion_steps=0,
        )
        squares.append(("", load_square(encodings.dataset, index, config.base.resolution)))
        drawn += base.decode(latents)
    trainer.unet.train()
    return contact_sheet([(config.concept_prompt, drawn)], squares)


def train(
    trainer: Trainer, encodings: Encodings, batches: Batches, work: Path, output: Output
) -> Iterator[tuple[Step, float]]:
    """Every step that is left, with checkpoints, log and sample sheets; yields steps and samples per second.

    Raises:
        Interrupted: a signal; the checkpoint is saved.
        DivergedError: a loss that is not finite; the last checkpoint is kept.
        OutputError, InputError, DeviceError: disk full, pictures gone, or another process has ended; the state so
            far is saved if it can be.
    """
    own, accelerator = trainer.config.pretrain, trainer.accelerator
    main = accelerator.is_main_process
    log = Log(work, trainer.start) if main else None
    saved = trainer.start

    def save(number: int) -> None:
        nonlocal saved
        if main and number > saved:
            save_checkpoint(work, trainer.checkpoint(number), own.keep_checkpoints)
            saved = number

    number, before = trainer.start, time.perf_counter()
    with Interrupts(main and not output.quiet, accelerator.num_processes) as interrupts:
        try:
            with lost_processes(accelerator.num_processes):
                for step in fit(
                    accelerator,
                    trainer.objective,
                    trainer.optimizer,
                    batches,
                    own.batch_size,
                    own.steps,
                    own.max_grad_norm,
                    start=trainer.start,
                    learning_rate=lambda number: warmed_up(own, number),
                    kept=f"the checkpoints in '{work}' are kept",
                ):
                    if trainer.average is not None:
                        trainer.average.update(trainer.promptnet, step.number)
                    number = step.number
                    rate = own.batch_size / max(time.perf_counter() - before, 1e-9)
                    if log is not None:
                        log.write(step, rate)
                    asked = interrupts.asked
                    if accelerator.num_processes > 1:
                        asked = int(accelerator.gather(torch.tensor([asked], device=accelerator.device)).max())
                    if asked or number % own.checkpoint_every == 0 or number == own.steps:
                        save(number)
                    if asked:
                        accelerator.wait_for_everyone()  # a launcher ends all as soon as one has ended
                        raise Interrupted(asked, f"A checkpoint of step {number} is in '{work}': go on with --resume.")
                    if log is not None and own.sample_every and number % own.sample_every == 0:
                        log.picture(number, draw_sheet(trainer, encodings))
                    yield step, rate
                    before = time.perf_counter()
        except (OutputError, InputError, DeviceError):
            with contextlib.suppress(OutputError):
                save(number)
            raise
        finally:
            if log is not None:
                log.close()


def checkpoint_to_resume(trainer: Trainer, work: Path, output: Output) -> Checkpoint | None:
    """The checkpoint that `--resume` goes on from, or None where there is none yet.

    Raises:
        InputError: all are damaged, or the processes see different ones.
        ConfigError: it belongs to another configuration, or to a longer training.
    """
    steps = trainer.config.pretrain.steps
    found = newest_checkpoint(
        work, lambda path: output.warn(f"'{path}' is damaged and passed over; an older one is tried.")
    )
    step = 0 if found is None else found.step
    if trainer.accelerator.num_processes > 1 and len(set(gather_object([step]))) > 1:
        raise InputError(
            f"The processes find different checkpoints in '{work}'.", "Give a folder that all machines share to --work."
        )
    if found is None:
        output.note(f"There is no checkpoint in '{work}': starting anew.")
        return None
    check_settings(found.settings, trainer.settings, str(work))
    if step > steps:
        raise ConfigError(
            f"pretrain.steps={steps}, and {step} steps are done in '{work}'.", f"Use --steps {step} or more."
        )
    output.note(f"Going on after step {step}.")
    return found


def pretrain(
    config: Config,
    listing: Listing,
    name: str,
    remembered: dict[str, Any],
    work: Path,
    cache: str | None,
    target: str,
    resume: bool,
    force: bool,
    output: Output,
) -> dict[str, Any]:
    """Train a PromptNet and write its bundle.

    Args:
        config: the resolved configuration.
        listing: the pictures.
        name: of the data set, where its pictures are too many to list.
        remembered: the configuration that the bundle remembers.
        work: folder for checkpoints, log and sample sheets.
        cache: folder for encoded pictures, or None.
        target: file name, or `-`.
        resume: go on from the newest checkpoint in `work`.
        force: overwrite an existing file, and without `resume` an earlier training in `work`.
        output: where progress goes.

    Returns:
        A summary. Only in the main process is a bundle written, and its SHA-256 in the summary.
    """
    started, own = time.perf_counter(), config.pretrain
    placement = resolve_placement(config.device, config.dtype, training=True)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if own.batch_size < processes:
        raise ConfigError(
            f"pretrain.batch_size={own.batch_size} is less than the {processes} processes.",
            "It counts the pictures of all processes together: raise it.",
        )
    parts = min(own.gradient_accumulation, own.batch_size // processes)
    cached = cache_folder(cache)
    with contextlib.ExitStack() as stack:
        # entered first: once the processes know of one another, transformers writes a random base in one of them only
        base = stack.enter_context(BaseModel(config.base, placement))
        accelerator = make_accelerator(placement, parts)
        base.placement = replace(placement, device=accelerator.device)
        stack.enter_context(lost_processes(accelerator.num_processes))
        if accelerator.is_main_process:  # not before the processes are connected, or the others would wait for it
            stack.enter_context(claimed_work(work, resume, force))
        dataset, unreadable = read_dataset(accelerator, listing, output)
        trainer = Trainer(config, base, accelerator, settings_of(config, base, dataset))
        trainer.prepare(checkpoint_to_resume(trainer, work, output) if resume else None)
        if accelerator.is_main_process and trainer.start == 0:
            clear_work(work)
        last = _run(trainer, dataset, cached, work, output)
        summary = {
            "kind": "promptnet",
            "steps": own.steps,
            "resumed_from": trainer.start,
            "last_loss": last[0].loss if last else None,
            "samples_per_second": round(last[1], 3) if last else None,
            "pictures": len(dataset.paths),
            "paired": dataset.paired(),
            "unreadable": unreadable,
            "num_processes": accelerator.num_processes,
            "work": str(work),
            "log": str(work / LOG),
        }
        if accelerator.is_main_process:
            manifest = {
                "kind": "promptnet",
                "base": base.manifest(base.fingerprints(*parts_for("promptnet"))),
                "config": remembered,
                "seed": config.seed,
                "inputs": dataset.inputs(name),
                "parents": [],
                "promptnet": promptnet_section(trainer.promptnet),
                "promptnet_source": {"weights": "pretrain", "steps": own.steps, "pictures": len(dataset.paths)},
            }
            files = {PROMPTNET_FILE: pack(trainer.weights(), DTYPES[own.save_dtype])}
            summary["checkpoint"] = str(checkpoint_files(work)[-1])
            with output_hint(
                f"The training is kept: free some space or choose another -o, and add --resume --work '{work}'."
            ):
                bundle = make_bundle(manifest, files)
                bundle.save(target, force)
                summary["sha256"] = bundle.sha256
    # only here: a process that has failed tells why before it breaks the connections of the others
    accelerator.end_training()
    return {**summary, "seconds": round(time.perf_counter() - started, 2)}


def _run(
    trainer: Trainer, dataset: Dataset, cache: Path | None, work: Path, output: Output
) -> tuple[Step, float] | None:
    """The loop with its progress; the last step and the samples per second."""
    config, base, accelerator = trainer.config, trainer.base, trainer.accelerator
    own, rank, processes = config.pretrain, accelerator.process_index, accelerator.num_processes
    bounds = [own.batch_size * i // processes for i in range(processes + 1)]
    last = None
    with Encodings(base, dataset, cache) as encodings:
        batches = Batches(
            encodings,
            own.batch_size,
            config.seed,
            trainer.latent_shape,
            base.vae_scaling_factor,
            base.scheduler.config.num_train_timesteps,
            slice(bounds[rank], bounds[rank + 1]),
        )
        with output.progress("Pre-training", own.steps) as progress:
            progress(trainer.start, "")
            begun, first = time.perf_counter(), trainer.start
            for step, rate in train(trainer, encodings, batches, work, output):
                progress(step.number, f"loss {step.loss:.4f}, {rate:.1f} samples/s")
                last = (step, (step.number - first) * own.batch_size / (time.perf_counter() - begun))
                if step.number % own.checkpoint_every == 0:
                    left = (own.steps - step.number) * own.batch_size / last[1]
                    output.note(
                        f"Step {step.number} of {own.steps}: loss {step.loss:.4f}, {last[1]:.1f} samples/s, "
                        f"{_duration(left)} left."
                    )
    return last


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
