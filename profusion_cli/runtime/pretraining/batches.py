"""The pictures of a training, and which of them each step is given."""

from __future__ import annotations

from functools import lru_cache

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from profusion_cli.dataset import Dataset, Listing, epoch_order, make_dataset, scan_pictures
from profusion_cli.listener import Listener
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import epoch_generator, step_generator
from profusion_cli.runtime.pretraining.encodings import Encodings
from profusion_cli.runtime.training import Batch
from profusion_cli.runtime.views import Views

NAMED_UNREADABLE = 5


def read_dataset(
    accelerator: Accelerator, listing: Listing, listener: Listener
) -> tuple[Dataset, list[dict[str, str]]]:
    """The readable pictures, and path and problem of the others; every process reads its share of them.

    Raises:
        InputError: none can be read.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    share = listing.paths[rank::processes]
    with listener.progress("Reading pictures", len(share)) as progress:
        scanned = scan_pictures(share, lambda done: progress(done, ""))
    if processes > 1:
        gathered = iter(gather_object([list(zip(range(rank, len(listing.paths), processes), scanned, strict=True))]))
        scanned = [one for _, one in sorted((pair for part in gathered for pair in part), key=lambda pair: pair[0])]
    pairs = zip(listing.paths, scanned, strict=True)
    bad = [{"path": path, "problem": one.problem} for path, one in pairs if one.sha256 is None]
    dataset = make_dataset(listing, scanned)
    if bad:
        listener.warn(f"{len(bad)} of {len(scanned)} pictures cannot be read and are left out:")
        for one in bad[:NAMED_UNREADABLE]:
            listener.note(f"  {one['problem']}")
        if len(bad) > NAMED_UNREADABLE:
            listener.note(f"  and {len(bad) - NAMED_UNREADABLE} more")
    listener.note(f"Learning from {len(dataset)} picture(s), {dataset.paired()} of them with another one as reference.")
    return dataset, bad


def epoch_pairs(dataset: Dataset, seed: int, epoch: int) -> list[tuple[int, int]]:
    """(target, reference) of every target, in the order of an epoch."""
    generator = epoch_generator(seed, epoch)
    return epoch_order(
        dataset,
        lambda count: torch.randperm(count, generator=generator).tolist(),
        lambda count: int(torch.randint(count, (), generator=generator)),
    )


def order_of_use(dataset: Dataset, seed: int, samples: int) -> tuple[list[int], int]:
    """All pictures by their first use in a training, and how many of them it uses.

    Args:
        dataset: the pictures.
        seed: of the training.
        samples: that it looks at; where it goes through the pictures more than once, it may use all of them.
    """
    pairs = epoch_pairs(dataset, seed, 0)
    used = dict.fromkeys(index for pair in pairs[:samples] for index in pair)
    order = list(dict.fromkeys([*used, *(index for pair in pairs for index in pair), *range(len(dataset.paths))]))
    return order, len(used) if samples <= len(pairs) else len(order)


class Chance:
    """The random numbers of each step, a function of (seed, step), and the batch that they make of pictures.

    Every process draws those of the whole batch and takes its part of them.

    Args:
        base: the base model.
        batch_size: of all processes together.
        seed: of the training.
        latent_shape: of one picture's latents.
        share: of the batch, that this process has.
    """

    def __init__(
        self, base: BaseModel, batch_size: int, seed: int, latent_shape: tuple[int, int, int], share: slice
    ) -> None:
        self.base, self.batch_size, self.seed, self.share = base, batch_size, seed, share
        self.latent_shape = latent_shape

    def positions(self, step: int) -> range:
        """Of the pictures of this process, among those of all steps and processes."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)[self.share]

    def batch(self, step: int, views: Views, target: torch.Tensor, reference: torch.Tensor) -> Batch:
        """The batch of a step (from 0).

        Args:
            step: see above.
            views: of the pictures.
            target, reference: which of them, for each sample of this process.
        """
        generator = step_generator(self.seed, step)
        shape = (self.batch_size, *self.latent_shape)
        drawn = [torch.randn(shape, generator=generator)[self.share] for _ in range(3)]
        train_timesteps = self.base.scheduler.config.num_train_timesteps
        timesteps = torch.randint(train_timesteps, (self.batch_size,), generator=generator)[self.share]
        return Batch(
            ref_latents=views.draw_latents(reference, drawn[0], self.base.vae_scaling_factor),
            image_tokens=views.image_tokens[reference],
            target_latents=views.draw_latents(target, drawn[1], self.base.vae_scaling_factor),
            noise=drawn[2],
            timesteps=timesteps,
        )


class Batches:
    """This process's share of the batch of a step; a function of (seed, step) and the pictures."""

    def __init__(self, encodings: Encodings, chance: Chance) -> None:
        self.encodings, self.chance = encodings, chance
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_pairs(encodings.dataset, chance.seed, epoch))

    def pairs(self, step: int) -> list[tuple[int, int]]:
        """(target, reference) of each picture of this process's share."""
        size = len(self.encodings.dataset)
        return [self._order(position // size)[position % size] for position in self.chance.positions(step)]

    def __call__(self, step: int) -> Batch:
        pairs = self.pairs(step)
        needed = {index: i for i, index in enumerate(dict.fromkeys(index for pair in pairs for index in pair))}
        views = self.encodings.views(list(needed))
        self.encodings.prefetch(index for pair in self.pairs(step + 1) for index in pair)
        target, reference = (torch.tensor([needed[pair[i]] for pair in pairs]) for i in (0, 1))
        return self.chance.batch(step, views, target, reference)
