"""Drawing the pictures of cells: of subjects, by the base model alone, or by the face world's renderer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from profusion_cli.bundle import read_bundle
from profusion_cli.config import Config
from profusion_cli.evaluation.cells.cell import Cell
from profusion_cli.evaluation.study.schema import DESCRIBED, Study
from profusion_cli.evaluation.study.subjects import drawn
from profusion_cli.plans import plan_of
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.pipelines import TextToImage
from profusion_cli.runtime.sampling import Sampler, present_words


class Studio:
    """Draws one subject, or two together, under many sampling settings without loading anything twice."""

    def __init__(self, base: BaseModel, bundles: Sequence[Path], class_words: Sequence[str], config: Config) -> None:
        opened = [read_bundle(path.read_bytes(), path.name) for path in bundles]
        self.base, self.sha256 = opened[0].manifest["base"], [bundle.sha256 for bundle in opened]
        self.class_words, self.weights = class_words, ()
        concept = [parse_prompt(config.concept_prompt, subjects=len(bundles))]
        self.sampler = Sampler(base, opened, class_words, concept, config)

    def draw(
        self,
        config: Config,
        weights: tuple[float, ...],
        text: str,
        indices: Sequence[int],
        progress: Callable[[float], None],
    ) -> list[Image.Image]:
        """Pictures j of a prompt; each has the noise of seed + j.

        Args:
            config: its section `sample` decides.
            weights: of the subjects, which sum to 1.
            text: the prompt.
            indices: the numbers j.
            progress: called with the share that is done.
        """
        if weights != self.weights:
            self.sampler.weigh(weights)
            self.weights = weights
        self.sampler.settings = config.sample
        self.sampler.plan = plan_of(config)
        prompt = parse_prompt(text, subjects=len(weights))
        tokens = self.sampler.tokenize(prompt, present_words(self.class_words, weights))
        scales = tuple(config.sample.subject_guidance[0] * weight for weight in weights)
        size, images = config.sample.batch_size, []
        for first in range(0, len(indices), size):
            part = indices[first : first + size]

            def report(steps: int, before: int = first, count: int = len(part)) -> None:
                progress((before + count * steps / len(self.sampler.plan.steps)) / len(indices))

            images += self.sampler.draw_batch(tokens, scales, part, report)
        return images


def draw_text(
    model: TextToImage, cell: Cell, text: str, indices: Sequence[int], progress: Callable[[float], None]
) -> list[Image.Image]:
    """The base model alone, with the class word or the description for S*, at the method's text guidance."""
    settings = cell.config.sample
    words = cell.subject.description if cell.method.kind == DESCRIBED else cell.config.class_word
    prompt = parse_prompt(text).twin([words])

    def report(done: int) -> None:
        progress(done / len(indices))

    return model.draw(prompt, indices, settings, settings.text_guidance, cell.config.seed, report)


def draw_world(
    study: Study, cell: Cell, text: str, indices: Sequence[int], _: Callable[[float], None]
) -> list[Image.Image]:
    """The face world's renderer: the ceiling."""
    return [drawn(cell.subject.seed, study.asks(text), index) for index in indices]
