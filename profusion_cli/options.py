"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from profusion_cli.samplers import sampler_help

CONFIGURATION = "Configuration"
OUTPUT = "Output"
FUSION = "Fusion Sampling"

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME|FILE",
        help="Base model and defaults: a shipped preset (see `profusion presets`) or a YAML file.",
        rich_help_panel=CONFIGURATION,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any key of the resolved configuration; may be repeated.",
        rich_help_panel=CONFIGURATION,
    ),
]
BaseModelOption = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="FOLDER|ID",
        help="Take the base model from this folder or Hub id instead of the preset's.",
        rich_help_panel=CONFIGURATION,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=CONFIGURATION),
]
DTypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="auto, float32, float16 or bfloat16.", rich_help_panel=CONFIGURATION),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of every random number.", rich_help_panel=CONFIGURATION),
]
Placeholder = Annotated[
    str | None,
    typer.Option("--placeholder", help="The word that stands for the subject in prompts (S*)."),
]
ClassWord = Annotated[
    str | None,
    typer.Option("--class-word", help='What the subject is, for the text without it ("a person").'),
]
AUGMENTATION = "Augmentation"
MaskOption = Annotated[
    str | None,
    typer.Option(
        "--mask",
        metavar="FILE",
        help="A picture of the photo's size, light on the subject and dark (or transparent) elsewhere.",
        rich_help_panel=AUGMENTATION,
    ),
]
BoxOption = Annotated[
    str | None,
    typer.Option(
        "--box", metavar="X,Y,W,H", help="The subject fills this box of the photo.", rich_help_panel=AUGMENTATION
    ),
]
ViewsOption = Annotated[
    int | None,
    typer.Option("--views", metavar="N", help="How many pictures to make.", rich_help_panel=AUGMENTATION),
]
NoInpaint = Annotated[
    bool,
    typer.Option(
        "--no-inpaint",
        help="Lay the subject on plain colours, without an inpainting model.",
        rich_help_panel=AUGMENTATION,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print the resolved configuration as YAML and stop.", rich_help_panel=CONFIGURATION),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output files.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notes or warnings.", rich_help_panel=OUTPUT)]

NegativePrompt = Annotated[str | None, typer.Option("--negative-prompt", help="What the pictures should not show.")]
SampleSteps = Annotated[int | None, typer.Option("--steps", help="Sampler steps.")]
Width = Annotated[int | None, typer.Option("--width", help="In pixels.")]
Height = Annotated[int | None, typer.Option("--height", help="In pixels.")]
SamplerName = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        help=sampler_help(),
        rich_help_panel=FUSION,
    ),
]
FusionSteps = Annotated[
    int | None,
    typer.Option(
        "--fusion-steps",
        help="Fusion updates in each step; 0 is sampling with independent conditions.",
        rich_help_panel=FUSION,
    ),
]
Gamma = Annotated[
    float | None,
    typer.Option("--gamma", help="Weight of S* in the fusion stage, 0 to 1.", rich_help_panel=FUSION),
]
GammaOn = Annotated[
    str | None,
    typer.Option(
        "--gamma-on",
        help="What gamma multiplies: embedding (paper), hidden (encoder output), hidden-first (authors' code).",
        rich_help_panel=FUSION,
    ),
]
SubjectPrompt = Annotated[
    str | None,
    typer.Option(
        "--subject-prompt",
        help="Subject term of the refinement: concept (S* alone, the paper) or full (the whole prompt).",
        rich_help_panel=FUSION,
    ),
]
TextGuidance = Annotated[
    float | None,
    typer.Option("--text-guidance", help="Guidance scale of the text in the refinement.", rich_help_panel=FUSION),
]
FusionGuidance = Annotated[
    float | None,
    typer.Option("--fusion-guidance", help="Guidance scale of the fusion stage.", rich_help_panel=FUSION),
]
FusionEta = Annotated[
    float | None,
    typer.Option("--fusion-eta", help="DDIM eta of the fusion stage, 0 to 1.", rich_help_panel=FUSION),
]
Eta = Annotated[
    float | None,
    typer.Option("--eta", help="DDIM eta of the refinement, 0 to 1.", rich_help_panel=FUSION),
]
