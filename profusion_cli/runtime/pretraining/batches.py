"""The pictures of a training, and which of them each step is given."""

from __future__ import annotations

from functools import lru_cache

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from profusion_cli.dataset import Dataset, Listing, epoch_order, make_dataset, scan_pictures
from profusion_cli.listener import Listener
from profusion_cli.runtime.device import epoch_generator, step_generator
from profusion_cli.runtime.pretraining.encodings import Encodings
from profusion_cli.runtime.training import Batch

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
