"""What the embedded model can do: settings side by side, judged on people that no network was trained on."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from profusion_cli.app import app as profusion
from profusion_cli.bundle import read_bundle
from profusion_cli.config import Config, SampleConfig, build_config, merge, nested
from profusion_cli.faceworld.drawing import draw_face, random_pose
from profusion_cli.faceworld.judges import Judges
from profusion_cli.faceworld.world import SPLITS, Context, identity
from profusion_cli.files import atomic_output
from profusion_cli.presets import local_path, read_preset
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import picture_generator, resolve_placement
from profusion_cli.runtime.sampling import Sampler, subject_weights

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

ASKED: dict[str, dict[str, str]] = {
    "S* in anime style": {"style": "anime"},
    "S* on a beach": {"place": "beach"},
    "S* wearing a chef hat": {"headwear": "chef hat"},
    "a pencil sketch of S*": {"style": "sketch"},
    "S* in the snow": {"place": "snow"},
    "S* in a superman costume": {"clothes": "superman"},
    "pixel art of S*": {"style": "pixel art"},
    "S* in a city at night": {"place": "city"},
    "S* wearing a crown in the desert": {"headwear": "crown", "place": "desert"},
    "an oil painting of S*": {"style": "oil painting"},
    "S* in a suit in a forest": {"clothes": "suit", "place": "forest"},
    "S* with headphones and a scarf": {"headwear": "headphones", "clothes": "scarf"},
    "a close-up of S*": {"framing": "close-up"},
    "a half-length portrait of S*": {"framing": "half-length"},
}
"""The prompts of all measurements, and what the judge must see."""
RECONSTRUCTION = "a photo of S*"
DRAWN, BASE, SUBJECT = KINDS = ("drawn", "base", "subject")
SIDE = 64


@dataclass(frozen=True)
class Cell:
    """One setting under test.

    Args:
        name: of its row in the table.
        kind: `subject`; `base` draws the prompts with the class word and no S*; `drawn` is the renderer.
        augment: fine-tune on the photo and its augmentations, not on the photo alone.
        photo: where the photo was taken and the like: attributes of its `Context` that are not everyday.
        settings: keys of the configuration that differ from the preset.
    """

    name: str
    kind: str = SUBJECT
    augment: bool = True
    photo: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tuning(self) -> dict[str, Any]:
        """The settings that the bundle is made with."""
        return {key: value for key, value in self.settings.items() if not key.startswith("sample.")}

    def sampling(self, config: Config) -> SampleConfig:
        """How pictures are drawn."""
        changed = {key: value for key, value in self.settings.items() if key.startswith("sample.")}
        return build_config(merge(config.as_dict(), nested(changed))).sample


@dataclass(frozen=True)
class Score:
    """One picture.

    Args:
        cell: under which setting.
        person: number in the split.
        prompt: with S*.
        adherence: share of what was asked for that the judge sees, in [0, 1]; None where nothing was.
        identity: similarity to the reference photo, in [-1, 1].
        other: similarity to the photo of the next person.
    """

    cell: str
    person: int
    prompt: str
    adherence: float | None
    identity: float
    other: float


def reference_photo(seed: int, **context: str) -> Image.Image:
    """The photo of a person that fine-tuning gets, everyday but for what `context` says."""
    return draw_face(identity(seed), Context(**context), random_pose(random.Random(f"reference {seed}")), SIDE)


def prompts_of(person: int, count: int) -> list[str]:
    """So many of the prompts; neighbours get different ones, so that few people cover them all."""
    names = list(ASKED)
    return [names[(person * count + j) % len(names)] for j in range(count)]


def interval(scores: Sequence[Score], value: Callable[[Score], float | None]) -> tuple[float, float, float]:
    """Mean over people of their mean, and its 95 % bootstrap interval over people; NaN of nothing."""
    people: dict[int, list[float]] = {}
    for score in scores:
        number = value(score)
        if number is not None:
            people.setdefault(score.person, []).append(number)
    if not people:
        return (float("nan"),) * 3
    means = np.array([np.mean(values) for values in people.values()])
    resampled = np.random.default_rng(0).choice(means, (2000, len(means))).mean(1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return float(means.mean()), float(low), float(high)


def summary(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """A row for each cell: number of pictures, adherence and identity over the prompts, and identity of the
    reconstruction, each with its interval."""
    rows = []
    for cell in dict.fromkeys(score.cell for score in scores):
        mine = [score for score in scores if score.cell == cell]
        asked = [score for score in mine if score.prompt in ASKED]
        plain = [score for score in mine if score.prompt == RECONSTRUCTION]
        rows.append(
            {
                "cell": cell,
                "people": len({score.person for score in mine}),
                "pictures": len(asked),
                "adherence": interval(asked, lambda score: score.adherence),
                "identity": interval(asked, lambda score: score.identity),
                "other person": interval(asked, lambda score: score.other),
                "reconstruction": interval(plain, lambda score: score.identity),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `summary` as a Markdown table."""
    columns = ("adherence", "identity", "other person", "reconstruction")

    def cell(value: tuple[float, float, float]) -> str:
        return "" if np.isnan(value[0]) else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"

    lines = [f"| setting | people | pictures | {' | '.join(columns)} |", "| --- " * 7 + "|"]
    for row in rows:
        values = " | ".join(cell(row[name]) for name in columns)
        lines.append(f"| {row['cell']} | {row['people']} | {row['pictures']} | {values} |")
    return "\n".join(lines)


class Study:
    """Draws and judges cells, person by person; what was scored before is not drawn again.

    Args:
        work: folder of bundles, pictures and `scores.jsonl`.
        model: folder of the model; None: the shipped one.
        split: of whom.
        people: how many of them, from the first.
        prompts: how many of the prompts each person gets.
        pictures: of each prompt.
        reconstructions: pictures of "a photo of S*" of each person.
        dtype: precision of everything.
        say: told how it goes.
    """

    def __init__(
        self,
        work: Path,
        model: Path | None,
        split: str,
        people: int,
        prompts: int,
        pictures: int,
        reconstructions: int,
        dtype: str,
        say: Callable[[str], None],
    ) -> None:
        self.work, self.split, self.people, self.prompts, self.say = work, split, people, prompts, say
        self.counts = {RECONSTRUCTION: reconstructions} | dict.fromkeys(ASKED, pictures)
        self.model: dict[str, Any] = {}
        if model is not None:
            weights = str(model / "promptnet.pfz")
            self.model = {"base.id": str(model), "augment.model.id": str(model), "promptnet.weights": weights}
        self.config = build_config(merge(read_preset("faceworld"), nested({**self.model, "dtype": dtype})))
        self.folder = Path(local_path(self.config.base.id))
        self.placement = resolve_placement(self.config.device, self.config.dtype, training=False)
        self.judges = Judges(self.folder / "judges")
        self.scores = work / "scores.jsonl"
        work.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[Score]:
        """All scores so far."""
        if not self.scores.exists():
            return []
        return [Score(**json.loads(line)) for line in self.scores.read_text(encoding="utf-8").splitlines()]

    def run(self, cells: Sequence[Cell]) -> list[Score]:
        """Make everything that is missing of these cells; all their scores."""
        done = {(score.cell, score.person) for score in self.read()}
        with BaseModel(self.config.base, self.placement) as base:
            for person in range(self.people):
                wanted = [cell for cell in cells if (cell.name, person) not in done]
                for group in _grouped(wanted):
                    base.release("unet")  # the last subject's changes are in it
                    bundle = self.bundle(person, group[0]) if group[0].kind == SUBJECT else None
                    studio = Studio(base, bundle, self.config) if bundle else None
                    for cell in group:
                        scores = list(self._judge(cell, person, studio))
                        with self.scores.open("a", encoding="utf-8") as file:
                            file.writelines(json.dumps(asdict(score)) + "\n" for score in scores)
                if wanted:
                    self.say(f"{self.split}: person {person + 1} of {self.people}, {len(wanted)} settings")
        names = {cell.name for cell in cells}
        return [score for score in self.read() if score.cell in names and score.person < self.people]

    def _seed(self, person: int) -> int:
        return SPLITS[self.split][person]

    def _photo(self, person: int, cell: Cell) -> Path:
        name = " ".join(
            [f"{self.split}-{person:03d}", *(f"{key}={value}" for key, value in sorted(cell.photo.items()))]
        )
        path = self.work / "photos" / f"{name}.png"
        if not path.exists():
            with atomic_output(path) as file:
                reference_photo(self._seed(person), **cell.photo).save(file, "PNG")
        return path

    def _made(self, person: int, command: str, source: Path, settings: Mapping[str, Any], *flags: str) -> Path:
        """What an ordinary command makes of a source, from the disk where it was made before."""
        mark = sha256(json.dumps([command, source.stem, settings, flags], sort_keys=True).encode()).hexdigest()[:12]
        target = self.work / command / f"{self.split}-{person:03d}-{mark}.pfz"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            given = [f"--set={key}={json.dumps(value)}" for key, value in {**self.model, **settings}.items()]
            arguments = [
                command,
                str(source),
                "-o",
                str(target),
                "--preset",
                "faceworld",
                "-q",
                "--force",
                *given,
                *flags,
            ]
            if settings.get("augment.inpaint", True) or command != "augment":
                arguments += ["--dtype", self.config.dtype]
            with redirect_stdout(sys.stderr):  # standard output is the table's
                code = profusion(arguments, standalone_mode=False)
            if code:  # it said what is wrong
                sys.exit(code)
        return target

    def bundle(self, person: int, cell: Cell) -> Path:
        """The subject bundle of a person."""
        settings, source, flags = cell.tuning, self._photo(person, cell), []
        if settings.get("finetune.steps") != 0:
            if cell.augment:
                chosen = {key: value for key, value in settings.items() if key.startswith("augment.")}
                source = self._made(person, "augment", source, chosen)
            else:
                flags = ["--no-augment"]
        return self._made(person, "finetune", source, settings, *flags)

    def _judge(self, cell: Cell, person: int, studio: Studio | None) -> Iterator[Score]:
        people = [self._seed(person), self._seed((person + 1) % self.people)]
        mine, other = self.judges.embeddings([reference_photo(seed) for seed in people])
        folder = self.work / "pictures" / cell.name.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for prompt in (RECONSTRUCTION, *prompts_of(person, self.prompts)):
            first = 10_000 * person + 100 * list(self.counts).index(prompt)
            indices = range(first, first + self.counts[prompt])
            if not indices:
                continue
            if cell.kind == DRAWN:
                images = [drawn(people[0], prompt, index) for index in indices]
            elif studio is None:
                images = self._draw_text(prompt, cell, indices)
            else:
                images = studio.draw(prompt, cell, indices)
            vectors, seen = self.judges.embeddings(images), self.judges.attributes(images)
            for number, image in enumerate(images):
                image.save(folder / f"{person:03d} {prompt.replace('*', '')} {number}.png")
                hits = [seen[number][name] == value for name, value in ASKED.get(prompt, {}).items()]
                adherence = sum(hits) / len(hits) if hits else None
                similar = [float(vectors[number] @ vector) for vector in (mine, other)]
                yield Score(cell.name, person, prompt, adherence, *similar)

    @cached_property
    def _pipeline(self) -> StableDiffusionPipeline:
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(
            str(self.folder), local_files_only=True, dtype=self.placement.dtype
        ).to(self.placement.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _draw_text(self, prompt: str, cell: Cell, indices: Sequence[int]) -> list[Image.Image]:
        """The base model alone, by diffusers' own pipeline, with the class word for S*."""
        settings = cell.sampling(self.config)
        return self._pipeline(
            [parse_prompt(prompt).twin([self.config.class_word])] * len(indices),
            num_inference_steps=settings.steps,
            guidance_scale=settings.text_guidance,
            generator=[picture_generator(self.config.seed, index) for index in indices],
            height=SIDE,
            width=SIDE,
        ).images


class Studio:
    """Draws one subject under many sampling settings without loading anything twice."""

    def __init__(self, base: BaseModel, bundle: Path, config: Config) -> None:
        self.config = config
        opened = read_bundle(bundle.read_bytes(), bundle.name)
        self.sampler = Sampler(base, [opened], [config.class_word], [parse_prompt(RECONSTRUCTION)], config)
        self.sampler.weigh((1.0,))

    def draw(self, prompt: str, cell: Cell, indices: Sequence[int]) -> list[Image.Image]:
        """Pictures j of a prompt under the settings of a cell; each has the noise of seed + j."""
        self.sampler.settings = cell.sampling(self.config)
        self.sampler.timesteps = self.sampler.base.timesteps(self.sampler.settings.steps)
        tokens = self.sampler.tokenize(parse_prompt(prompt), [self.config.class_word])
        scales, _ = subject_weights(self.sampler.settings, 1)
        return self.sampler.draw_batch(tokens, scales, indices, lambda _: None)


def drawn(seed: int, prompt: str, number: int) -> Image.Image:
    """The renderer's own picture of what a prompt asks for: the ceiling."""
    pose = random_pose(random.Random(f"ceiling {seed} {prompt} {number}"))
    return draw_face(identity(seed), Context(**ASKED.get(prompt, {})), pose, SIDE)


def _grouped(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that draw from the same bundle."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        key = json.dumps([cell.kind, cell.augment, dict(cell.photo), cell.tuning], sort_keys=True)
        groups.setdefault(key, []).append(cell)
    return list(groups.values())
