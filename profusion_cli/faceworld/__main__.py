"""`python -m profusion_cli.faceworld`: draw faces, rebuild the embedded model, check its judges."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from profusion_cli.app import Commands
from profusion_cli.console import Output
from profusion_cli.faceworld.world import ATTRIBUTES, SPLITS, Context, identity
from profusion_cli.files import STDIO, atomic_output, check_target

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
STAGES = ("clip", "vae", "unet", "inpaint", "attributes", "identities", "structure", "readable", "promptnet")


def _check_split(value: str) -> str:
    if value not in SPLITS:
        raise typer.BadParameter(f"'{value}' is none of {', '.join(SPLITS)}.")
    return value


def _check_model(value: Path | None) -> Path | None:
    if value is not None and not (value / "judges").is_dir():
        raise typer.BadParameter(f"'{value}' holds no judges.")
    return value


Split = Annotated[str, typer.Option(help=f"Of whom: {', '.join(SPLITS)}.", callback=_check_split)]


@app.command()
def draw(
    seed: Annotated[int, typer.Argument(help="Who: the same number is always the same person.")],
    target: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="A PNG, or - for standard output.")],
    split: Split = "test",
    style: Annotated[str, typer.Option(help=f"{', '.join(ATTRIBUTES['style'])}.")] = "photo",
    place: Annotated[str, typer.Option(help=f"{', '.join(ATTRIBUTES['place'])}.")] = "plain",
    clothes: Annotated[str, typer.Option(help=f"{', '.join(ATTRIBUTES['clothes'])}.")] = "shirt",
    headwear: Annotated[str, typer.Option(help=f"{', '.join(ATTRIBUTES['headwear'])}.")] = "none",
    framing: Annotated[str, typer.Option(help=f"{', '.join(ATTRIBUTES['framing'])}.")] = "portrait",
    size: Annotated[int, typer.Option(min=16, max=1024, help="Side in pixels.")] = 64,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Draw a face with the renderer: no model is asked."""
    from profusion_cli.faceworld.drawing.face import draw_face
    from profusion_cli.faceworld.drawing.pose import random_pose

    context = Context(style, place, clothes, headwear, framing)
    for name, value in context.attributes().items():
        if value not in ATTRIBUTES[name]:
            raise typer.BadParameter(f"'{value}' is none of {', '.join(ATTRIBUTES[name])}.", param_hint=f"--{name}")
    if not 0 <= seed < len(SPLITS[split]):
        raise typer.BadParameter(f"No person {seed} in the split '{split}'.")
    person = SPLITS[split][seed]
    pose = random_pose(random.Random(f"draw {person}"))
    check_target(target, force)
    with atomic_output(target, force) as file:
        draw_face(identity(person), context, pose, size).save(file, "PNG")
    if target != STDIO:
        Output().line(target)


@app.command()
def build(
    target: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the model.")],
    work: Annotated[
        Path | None, typer.Option(help="Folder for data and checkpoints (the output's name .work).")
    ] = None,
    scale: Annotated[str, typer.Option(help="full, or smoke to see every stage run in a minute.")] = "full",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    only: Annotated[str, typer.Option(help=f"Stages, with commas: {','.join(STAGES)}.")] = ",".join(STAGES),
) -> None:
    """Train the whole model from seeds. A stage that is done is passed over; one that was cut off goes on."""
    from profusion_cli.faceworld.stack import SCALES
    from profusion_cli.faceworld.stages import Workshop, run_stage
    from profusion_cli.runtime.backbone import quiet_libraries
    from profusion_cli.runtime.device import resolve_placement

    wanted = [name.strip() for name in only.split(",")]
    for name in wanted:
        if name not in STAGES:
            raise typer.BadParameter(f"There is no stage '{name}': {', '.join(STAGES)}.", param_hint="--only")
    if scale not in SCALES:
        raise typer.BadParameter(f"'{scale}' is none of {', '.join(SCALES)}.", param_hint="--scale")
    work = work or target.with_name(f"{target.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    where = resolve_placement(device, "auto", training=True).device
    with quiet_libraries():
        shop = Workshop(work, target, SCALES[scale], where, Output().note)
        for name in wanted:
            run_stage(shop, name)
    Output().line(str(target))


@app.command()
def judge(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a built model.", callback=_check_model)],
    people: Annotated[int, typer.Option(min=3, help="How many.")] = 200,
    first: Annotated[
        int, typer.Option(min=0, help="Number of the first; studies show no test people from 500 on.")
    ] = 500,
    split: Split = "test",
) -> None:
    """Check the judges, and the columns of studies, on pictures by the renderer, as one JSON object."""
    if first + people > len(SPLITS[split]):
        raise typer.BadParameter(f"The split '{split}' has {len(SPLITS[split])} people.", param_hint="--people")
    from profusion_cli.faceworld.judges import Judges
    from profusion_cli.faceworld.measure import check_judges
    from profusion_cli.faceworld.reactions import reactions

    folder, shown = model / "judges", range(first, first + people)
    Output(as_json=True).record(
        {**check_judges(Judges(folder), shown, split), "columns": reactions(folder, shown, split)}
    )


if __name__ == "__main__":
    app(prog_name="python -m profusion_cli.faceworld")
