"""Plans of sampling: what each step asks the UNet for, settled before the first one and walked by `sample_fusion`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from profusion_cli.errors import ConfigError
from profusion_cli.samplers import SAMPLERS, has_text
from profusion_cli.settings import setting

if TYPE_CHECKING:
    from profusion_cli.config import Config
    from profusion_cli.sampling import SampleConfig

SolverName = Literal["ddim", "dpm-solver++"]
SpeedName = Literal["exact", "fast", "draft"]
EXACT = "exact"
PROMPTNET, TEXT_ENCODER = 0.346, 0.056
"""What an evaluation of them takes in units of one of the UNet, in Stable Diffusion 2 at 512 pixels, by FLOPs."""


@dataclass(frozen=True)
class PlanConfig:
    """A plan of `sample.speed`, which draws with fewer evaluations of the UNet."""

    steps: int = setting("Sampler steps, spread over those of the exact algorithm.", 17, 1, 1000)
    keep: int = setting("Steps that guidance differences are used in: 1 asks for them anew in each.", 1, 1, 1000)
    fusion_from: float = setting("Where the fusion stage begins, as a part of the steps.", 0.0, 0, 0.99)
    fusion_until: float = setting("Where the fusion stage ends, as a part of the steps.", 1.0, 0.01, 1)
    word_once: bool = setting("Compute S* once a step, and not again behind the fusion stage.", True)
    solver: SolverName = setting(
        "What takes the steps outside of the fusion stage: ddim, or dpm-solver++ of the second order.", "ddim"
    )

    def __post_init__(self) -> None:
        if self.fusion_from >= self.fusion_until:
            raise ConfigError(
                f"plans: with fusion_from={self.fusion_from} and fusion_until={self.fusion_until} no step is fused.",
                "Give a fusion_from below fusion_until; sample.fusion_steps=0 leaves the fusion stage out.",
            )


@dataclass(frozen=True)
class PlansConfig:
    """What `sample.speed` chooses from, beside `exact`."""

    fast: PlanConfig = setting("As good as exact, for less.", PlanConfig())
    draft: PlanConfig = setting("For a look.", PlanConfig(steps=16, keep=2))


@dataclass(frozen=True)
class PlannedStep:
    """One step t -> s.

    Args:
        index: of t, in the schedule of the exact algorithm.
        updates: how often the fusion stage runs, eq. (11).
        refine: the refinement takes the step, eq. (6); otherwise the fused prediction does.
        fresh: every condition is asked for; otherwise the unconditional prediction alone, and each condition differs
            from it by what it did when it was last asked for.
        order: of the solver that takes the step: 1 is DDIM, eq. (8), 2 is DPM-Solver++(2M).
    """

    index: int
    updates: int
    refine: bool = True
    fresh: bool = True
    order: Literal[1, 2] = 1


@dataclass(frozen=True)
class Plan:
    """What a picture is drawn by.

    Args:
        schedule: how many timesteps the exact algorithm has, of which those of the steps are some.
        steps: one or more, by increasing index.
        word_once: S* is computed once a step, and not again behind the fusion stage.
    """

    schedule: int
    steps: tuple[PlannedStep, ...]
    word_once: bool = False

    def __post_init__(self) -> None:
        if not self.steps or not self.steps[0].fresh or self.steps[0].order != 1:
            raise ValueError("a plan begins with a step of the first order that asks for every condition")

    def indices(self) -> tuple[int, ...]:
        """Of the timesteps of the steps, and behind the last one."""
        return (*(step.index for step in self.steps), self.schedule)


def exact_plan(steps: int, fusion_steps: int = 1, refine: bool = True) -> Plan:
    """Algorithm 1 as it stands: in every step everything is asked for anew.

    Args:
        steps: of the schedule.
        fusion_steps: m >= 0; 0 is sampling with independent conditions.
        refine: False is the paper's ablation "without refinement stage", in which the last fused prediction takes the
            step.

    Raises:
        ValueError: neither stage selected.
    """
    if fusion_steps < 0 or (fusion_steps == 0 and not refine):
        raise ValueError(f"fusion_steps={fusion_steps} with refine={refine} leaves nothing to do")
    updates = fusion_steps if refine else fusion_steps - 1
    return Plan(steps, tuple(PlannedStep(index, updates, refine=refine) for index in range(steps)))


def short_plan(shape: PlanConfig, schedule: int, fusion_steps: int, refine: bool, eta: float) -> Plan:
    """A plan that asks for less than Algorithm 1 does.

    Its timesteps are spread evenly over those of the exact algorithm, the first and the last of which it has.

    Args:
        shape: of the plan.
        schedule: steps of the exact algorithm.
        fusion_steps, refine: as of `exact_plan`.
        eta: DDIM's, of the refinement; above 0 every step is of the first order.
    """
    count = min(shape.steps, schedule)
    inside = [shape.fusion_from <= i / count < shape.fusion_until for i in range(count)]
    if not any(inside):  # between two steps
        inside[min(round(shape.fusion_from * count), count - 1)] = True
    begin, steps = inside.index(True) if fusion_steps > 0 else 0, []
    for i in range(count):
        updates = fusion_steps if inside[i] else 0
        smooth = shape.solver != "ddim" and refine and eta == 0 and not updates and 0 < i < count - 1
        steps.append(
            PlannedStep(
                round(i * (schedule - 1) / max(count - 1, 1)),
                updates if refine else max(updates - 1, 0),
                refine=refine,
                fresh=i % shape.keep == 0 or i == begin,
                order=2 if smooth else 1,
            )
        )
    return Plan(schedule, tuple(steps), shape.word_once)


def without_subject(config: Config) -> Config:
    """The configuration that a prompt without S* is drawn by: plain guidance, at the scale of the text."""
    settings = config.sample
    scale = settings.text_guidance if has_text(settings) else sum(settings.subject_guidance)
    own = {"sampler": "cfg", "subject_guidance": (scale,), "weights": None, "areas": None, "references": "one"}
    return replace(config, sample=replace(settings, **own))


def late_plan(plan: Plan, strength: float) -> Plan:
    """The last steps of a plan, for whoever starts from a picture: this part of the exact algorithm's, in (0, 1].

    The first of them asks for every condition, and is of the first order.
    """
    begin = plan.schedule - max(round(plan.schedule * strength), 1)
    first, *others = [step for step in plan.steps if step.index >= begin] or plan.steps[-1:]
    return replace(plan, steps=(replace(first, fresh=True, order=1), *others))


@dataclass(frozen=True)
class Cost:
    """What a picture takes: evaluations on one picture of the UNet, of PromptNet, and of the text encoder for prompts
    with an S* that changes."""

    unet: int
    promptnet: int
    text_encoder: int

    def units(self, promptnet: float = PROMPTNET, text_encoder: float = TEXT_ENCODER) -> float:
        """All of it in evaluations of the UNet, given what those of the others take of it."""
        return self.unet + promptnet * self.promptnet + text_encoder * self.text_encoder


@dataclass(frozen=True)
class Asked:
    """What the stages ask for beside the unconditional prediction.

    Args:
        fused: prompts of the fusion stage.
        fused_words: subjects whose S* stands in them.
        subjects: of the refinement, each with a prompt of its own.
        text: the text has a term in the refinement.
    """

    fused: int = 1
    fused_words: int = 1
    subjects: int = 1
    text: bool = True


def asked_of(settings: SampleConfig, scales: Sequence[float], joint: bool = False) -> Asked:
    """What the stages ask for in a picture.

    Args:
        settings: of the sampler.
        scales: guidance scale of each subject.
        joint: all subjects stand in one prompt of the fusion stage.
    """
    present, areas = sum(scale > 0 for scale in scales), settings.areas is not None
    everyone = len(scales) if areas or joint else present
    return Asked(1 if joint and not areas else everyone, everyone, present, has_text(settings))


def cost_of(plan: Plan, asked: Asked = Asked(), learned: bool = True, references: int = 1) -> Cost:
    """What a plan takes.

    Args:
        plan: of the picture.
        asked: in each step.
        learned: S* is PromptNet's; an ordinary word is encoded before the first step.
        references: views that PromptNet looks at for one S*.
    """
    unet = promptnet = encoded = 0
    for step in plan.steps:
        fused = step.updates + (not step.refine)
        unet += fused + step.refine
        if step.fresh:
            words = [asked.fused_words] * fused + [asked.subjects] * step.refine
            prompts = fused * asked.fused + step.refine * asked.subjects
            unet += prompts + (asked.text and step.refine)
            promptnet += max(words) if plan.word_once else sum(words)
            encoded += prompts
    return Cost(unet, promptnet * references, encoded) if learned else Cost(unet, 0, 0)


def shape_of(config: Config) -> PlanConfig | None:
    """Of the plan that `sample.speed` chooses; None: the exact algorithm."""
    speed = config.sample.speed
    return None if speed == EXACT else getattr(config.plans, speed)


def plan_of(config: Config, strength: float = 1.0) -> Plan:
    """What `sample.speed` says, for the sampler of the configuration.

    Args:
        config: see above.
        strength: the part of the steps that is taken; see `late_plan`.
    """
    settings, shape = config.sample, shape_of(config)
    kind = SAMPLERS[settings.sampler]
    fusion_steps = kind.fusion_steps(settings.fusion_steps)
    if shape is None:
        return late_plan(exact_plan(settings.steps, fusion_steps, kind.refinement), strength)
    return late_plan(short_plan(shape, settings.steps, fusion_steps, kind.refinement, settings.eta), strength)


def lines_of(plan: Plan, costs: Mapping[str, Cost]) -> Iterator[str]:
    """A plan, and what pictures of prompts cost, for people to read."""
    alike = len(set(costs.values())) == 1
    for prompt, cost in [*costs.items()][: 1 if alike else None]:
        yield (
            f"A picture{'' if alike else f' of {prompt!r}'} takes {cost.units():.1f} U, evaluations of the UNet: "
            f"{cost.unet} of its own, {cost.promptnet} of PromptNet ({PROMPTNET} U each) and {cost.text_encoder} of "
            f"the text encoder ({TEXT_ENCODER} U each)."
        )
    steps = plan.steps
    yield f"Steps: {len(steps)} of {plan.schedule}, {_numbers(steps)}"
    if not all(step.fresh for step in steps):
        yield f"Conditions are asked for anew in {_numbers([step for step in steps if step.fresh])}"
    fused = [step for step in steps if step.updates or not step.refine]
    if fused != list(steps):
        yield f"The fusion stage runs in {_numbers(fused)}" if fused else "The fusion stage runs in no step."
    if second := [step for step in steps if step.order == 2]:
        yield f"DPM-Solver++ takes {_numbers(second)}"
    if plan.word_once:
        yield "S* is computed once a step."


def _numbers(steps: Sequence[PlannedStep]) -> str:
    return ", ".join(str(step.index + 1) for step in steps)
