"""What exports of face-world subjects keep, drawn by diffusers' own pipeline and judged as a study's pictures are.

`python -m tests.exports RUN METHOD BUNDLES [WAY...]`: pictures of one method of a finished study again, by what is
exported of its subjects' bundles (`WAYS`, or some of them), beside those of the study itself.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from profusion_cli.bundle import Bundle, read_bundle
from profusion_cli.config import build_config
from profusion_cli.evaluation.cells.cell import Cell
from profusion_cli.evaluation.faceworld import FaceWorldJudges
from profusion_cli.evaluation.runner import Run
from profusion_cli.evaluation.study.reading import read_study
from profusion_cli.jobs.configuration import remembered_config
from profusion_cli.jobs.exporting import export_file
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import resolve_placement

COLUMNS = ("adherence", "identity", "copying", "details", "structure")
STEPS, GUIDANCE_SCALE = 50, 4.0
NAMES = ("embedding", "lora", "lora and embedding", "lora-full", "lora-full and embedding")
WAYS = {name: tuple(name.split(" and ")) for name in NAMES}
ENDS = {"weight": ".diff", "bias": ".diff_b"}


def stock(base: BaseModel) -> StableDiffusionPipeline:
    """The base model in diffusers' own pipeline."""
    parts = {"unet": base.as_stored("unet").float(), "vae": base.vae, "text_encoder": base.as_stored("text_encoder")}
    parts["text_encoder"].float()
    scheduler = DDIMScheduler.from_config(base.scheduler.config)
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline(**parts, tokenizer=base.tokenizer, scheduler=scheduler, **nothing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_differences(unet: UNet2DConditionModel, tensors: dict[str, torch.Tensor]) -> None:
    """Add whole differences to a UNet's parameters as ComfyUI does, `.diff` to weights and `.diff_b` to biases.

    Raises:
        KeyError: a tensor that is of no parameter.
    """
    left = dict(tensors)
    for name, parameter in unet.named_parameters():
        module, _, kind = name.rpartition(".")
        difference = left.pop(f"lora_unet_{module.replace('.', '_')}{ENDS[kind]}", None)
        if difference is not None:
            parameter.data += difference
    if left:
        raise KeyError(f"of no parameter: {', '.join(left)}")


def drawn(cell: Cell, bundle: Bundle, way: tuple[str, ...]) -> Iterator[Image.Image]:
    """A cell's pictures by what is exported of its subject."""
    config = build_config(remembered_config(bundle))
    with BaseModel(config.base, resolve_placement("cpu", "float32", training=False)) as base:
        pipe = stock(base)
    with tempfile.TemporaryDirectory() as folder:
        for to in way:
            path = Path(folder) / f"{to}.safetensors"
            path.write_bytes(export_file(bundle, config, to).data)
            if to == "lora-full":
                add_differences(pipe.unet, load_file(path))
            else:
                (pipe.load_textual_inversion if to == "embedding" else pipe.load_lora_weights)(str(path))
    for picture in cell.made["pictures"]:
        prompt = parse_prompt(picture["prompt"])
        text = prompt.text if "embedding" in way else prompt.twin([config.class_word])
        generator = torch.Generator().manual_seed(cell.config.seed + picture["index"])
        side = {"height": config.base.resolution, "width": config.base.resolution}
        drawing = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "generator": generator}
        yield pipe(text, **side, **drawing).images[0]


def main(folder: str, method: str, bundles: str, *ways: str) -> None:
    run = Run(Path(folder), read_study(str(Path(folder) / "study.yaml")))
    cells = [cell for cell in run.cells(run.study.methods) if cell.method.name == method and cell.made]
    wanted = {sha256 for cell in cells for sha256 in cell.made["bundles"]}
    read = (read_bundle(path.read_bytes(), path.name) for path in sorted(Path(bundles).rglob("*.pfz")))
    known = {bundle.sha256: bundle for bundle in read if bundle.sha256 in wanted}
    judges, scores = FaceWorldJudges({}, torch.device("cpu")), {way: [] for way in ("profusion", *(ways or WAYS))}
    for cell in cells:
        judged = run.jury._judged(cell, cell.subject)
        scores["profusion"].append(judges.score(judged))
        for way in ways or WAYS:
            pictures = drawn(cell, known[cell.made["bundles"][0]], WAYS[way])
            found = [replace(item, picture=picture) for item, picture in zip(judged, pictures, strict=True)]
            scores[way].append(judges.score(found))
            if cell is cells[0]:
                for number, item in enumerate(found):
                    item.picture.save(f"{way}-{number}.png".replace(" ", "-"))
    for way, people in scores.items():
        print(f"| {way} | {' | '.join(interval(means_of(people, column)) for column in COLUMNS)} |")


def means_of(people: list[list[dict[str, float | None]]], column: str) -> np.ndarray:
    """The mean of a column over the pictures of each person."""
    return np.array([np.mean([one[column] for one in person if one[column] is not None]) for person in people])


def interval(means: np.ndarray, signed: bool = False) -> str:
    """The mean over people, with its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(means, (10000, len(means))).mean(axis=1)
    values = (means.mean(), *np.quantile(drawn, (0.025, 0.975)))
    mean, low, high = (f"{value:+.3f}" if signed else f"{value:.3f}" for value in values)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main(*sys.argv[1:])
