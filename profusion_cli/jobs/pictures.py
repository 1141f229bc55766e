"""Subjects and prompts -> pictures, each with a record of how it was made."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from profusion_cli.bundle import Bundle
from profusion_cli.config import BaseConfig, Config, PromptNetSource
from profusion_cli.errors import BundleError, InputError, UsageError
from profusion_cli.files import atomic_output
from profusion_cli.images import encode_picture
from profusion_cli.images.credentials import Credentials, signed
from profusion_cli.jobs.configuration import configure, remembered_config, warn_if_random
from profusion_cli.jobs.lineage import picture_parameters, picture_record
from profusion_cli.jobs.parents import needs_parent, parents_of
from profusion_cli.jobs.trust import check_trusted
from profusion_cli.listener import LIBRARIES, LOGGED, Listener
from profusion_cli.plans import without_subject
from profusion_cli.prompts import Prompt, alternatives, foreign_marks, parse_prompt
from profusion_cli.samplers import subject_weights
from profusion_cli.starting import Start

if TYPE_CHECKING:
    from profusion_cli.runtime.keeping import KeptBase
    from profusion_cli.runtime.sampling import Sampler


@dataclass(frozen=True)
class Picture:
    """One picture of a subject.

    Args:
        image: RGB.
        prompt: number of its prompt, from 0.
        index: its number j among the pictures of the prompt, or among the frames between subjects.
        record: how it was made, as plain data; its seed is the configuration's + j.
        parameters: the same in the words of other tools.
    """

    image: Image.Image
    prompt: int
    index: int
    record: dict[str, Any]
    parameters: str

    def save(self, target: str | Path, force: bool = False, credentials: Credentials | None = None) -> None:
        """Write it as a PNG file with its record; `-` is standard output.

        Args:
            target, force: where to.
            credentials: what it is signed by; None: nothing.

        Raises:
            OutputError: the target exists (without `force`) or cannot be written.
        """
        data = encode_picture(str(target), self.image, self.parameters, self.record)
        with atomic_output(target, force) as file:
            file.write(signed(data, str(target), self.record, credentials))


def class_words_of(bundles: Sequence[Bundle], config: Config, given: str | None) -> list[str]:
    """What each subject is: its own word, unless one was given for all, or the configuration has another."""
    words = [bundle.manifest["config"]["class_word"] for bundle in bundles]
    if given is not None or config.class_word != words[0]:
        return [config.class_word if given is None else given] * len(bundles)
    return words


def check_same_base(bundles: Sequence[Bundle]) -> None:
    """All subjects live on one base model.

    Raises:
        BundleError: they do not.
    """
    first = bundles[0]
    for other in bundles[1:]:
        if other.manifest["base"]["fingerprint"] != first.manifest["base"]["fingerprint"]:
            raise BundleError(
                f"'{first.name}' and '{other.name}' were made on different base models "
                f"('{first.manifest['base']['id']}' and '{other.manifest['base']['id']}').",
                "Fine-tune them on the same base model to draw them together.",
            )


def _config_of(subjects: Sequence[Bundle], config: Config | None) -> Config:
    """What to draw by, of subjects that go together.

    Raises:
        UsageError: no subject.
        BundleError: subjects of another kind, on different base models, or on one that nobody but the bundle names.
    """
    if not subjects:
        raise UsageError("There is no subject.", "Give one at least.")
    for bundle in subjects:
        bundle.require("subject")
    check_same_base(subjects)
    if config is None:
        config = configure(None, remembered_config(subjects[0]), {})
        check_trusted(config, subjects[0])
    return config


class Bases:
    """Base models that several subjects are drawn with, one after another; each is loaded once.

    Use as a context manager.

    Args:
        listener: who hears of it.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener, self._stack = listener, ExitStack()
        self._open: tuple[BaseConfig, KeptBase] | None = None

    def __enter__(self) -> Bases:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of(self, config: Config) -> KeptBase:
        """The base model of a subject: the last one's, if it is the same."""
        from profusion_cli.runtime.device import resolve_placement
        from profusion_cli.runtime.keeping import KeptBase

        if self._open is None or self._open[0] != config.base:
            self._stack.close()
            placement = resolve_placement(config.device, config.dtype, training=False)
            base = self._stack.enter_context(KeptBase(config.base, placement, self._listener))
            self._open = config.base, base
        return self._open[1]


def draw(
    subjects: Sequence[Bundle],
    prompts: Sequence[str],
    config: Config | None = None,
    *,
    class_word: str | None = None,
    promptnet: bool = False,
    base: KeptBase | None = None,
    start: Start | None = None,
    listener: Listener = LOGGED,
) -> Generator[Picture, None, None]:
    """Pictures of subjects, prompt by prompt; each is there as soon as its batch is drawn.

    Args:
        subjects: as `make_subject` makes them; S* stands for each in turn, and S1*, S2* name them within one prompt.
        prompts: texts with S*; over a picture also ones without, which the base model draws alone.
        config: the resolved configuration; its `sample` section decides. None: what the first subject remembers.
        class_word: what every subject is, in place of its own class word.
        promptnet: the PromptNet of the configuration is the one that the subjects' adapters are for; otherwise it is
            found by its fingerprint.
        base: the base model, which is kept for further subjects; None: one for these alone.
        start: a picture that is drawn over; None: nothing.
        listener: who hears of it.

    Raises:
        UsageError: no subject, or no list of prompts; or a PromptNet that none of them needs.
        UnavailableError: a subject's adapters are for a PromptNet that is not at hand.
        BundleError: subjects of another kind, on different base models, or that do not fit the base model.
        InputError: a prompt that cannot be used.
        ConfigError: numbers of guidance scales or weights that do not fit the subjects, or a wrong size.
    """
    if isinstance(prompts, str):
        raise UsageError(f"'{prompts}' is one prompt, and a list of them is needed.", "Put it into a list.")
    config = _config_of(subjects, config)
    class_words = class_words_of(subjects, config, class_word)
    parsed = [parse_prompt(text, config.placeholder, len(subjects), bare=start is not None) for text in prompts]
    subject_weights(config.sample, len(subjects))
    parents = parents_of(subjects, config, promptnet)
    opened = _opened(subjects, parents, parsed, class_words, config, base, listener, start)
    return _draw(opened, subjects, parsed, config, listener, start)


@contextmanager
def _opened(
    subjects: Sequence[Bundle],
    parents: Sequence[PromptNetSource],
    prompts: list[Prompt],
    class_words: list[str],
    config: Config,
    base: KeptBase | None,
    listener: Listener,
    start: Start | None = None,
) -> Iterator[Sampler]:
    """All that drawing takes, loaded while the block runs, after what there is to say is told."""
    warn_if_random(config, listener)
    warn_if_large(config, listener)
    with listener.working(LIBRARIES):
        from profusion_cli.runtime.backbone import BaseModel
        from profusion_cli.runtime.device import compiling, repeatable, resolve_placement
        from profusion_cli.runtime.keeping import lent
        from profusion_cli.runtime.needs import DRAWS, base_needs, promptnet_needs, provide
        from profusion_cli.runtime.sampling import Sampler

    adapted = [parent for one, parent in zip(subjects, parents, strict=True) if needs_parent(one)]
    needs = [need for parent in adapted for need in promptnet_needs(replace(config, promptnet=parent))]
    provide([*base_needs(config, DRAWS), *needs])
    placement = resolve_placement(config.device, config.dtype, training=False)
    opened = BaseModel(config.base, placement, listener) if base is None else lent(base, placement)
    with repeatable(config.deterministic), compiling(config.compile), opened as model:
        sampler = Sampler(model, subjects, class_words, prompts, config, parents, start)
        for warning in sampler.warnings():
            listener.warn(warning)
        yield sampler


def _draw(
    opened: AbstractContextManager[Sampler],
    subjects: Sequence[Bundle],
    prompts: list[Prompt],
    config: Config,
    listener: Listener,
    start: Start | None,
) -> Generator[Picture, None, None]:
    warn_of_marks([prompt.text for prompt in prompts], listener)
    if bare := next((prompt.text for prompt in prompts if prompt.bare), None):
        listener.note(f"No subject is named in '{bare}', so the base model draws it alone.")
    with opened as sampler:
        batches = -(-config.sample.num_images // config.sample.batch_size) * len(prompts)
        with listener.progress("Sampling", batches * len(sampler.plan.steps)) as step:
            for drawn in sampler.draw(step):
                twin = sampler.tokens[drawn.prompt].twin
                words = [subject.class_word for subject in sampler.subjects]
                own = without_subject(config) if prompts[drawn.prompt].bare else config
                record = picture_record(prompts[drawn.prompt], twin, drawn.index, subjects, words, own, start)
                if own.sample.references == "each":
                    record["seen"] = sampler.view_of(drawn.index)
                parameters = picture_parameters(record, own, drawn.image)
                yield Picture(drawn.image, drawn.prompt, drawn.index, record, parameters)


def warn_of_marks(prompts: Sequence[str], listener: Listener) -> None:
    """What other tools read as a weight is told of, as it is plain text here."""
    marks = dict.fromkeys(mark for prompt in prompts for mark in foreign_marks(prompt))
    if marks:
        shown = ", ".join(repr(mark) for mark in list(marks)[:5])
        listener.warn(f"Other tools read {shown} as weights or commands; here that is plain text of the prompt.")


def warn_if_large(config: Config, listener: Listener) -> None:
    """Pictures larger than those that the base model was trained on are told of."""
    own, settings = config.base.resolution, config.sample
    width, height = settings.width or own, settings.height or own
    if max(width, height) > own:
        listener.warn(
            f"The pictures are {width}x{height}, and the base model was trained on {own}x{own}: beyond its own size it "
            "tends to draw the subject several times."
        )


def check_way(names: Sequence[str], frames: int) -> None:
    """A way leads from subject to subject.

    Raises:
        UsageError: too few subjects or frames.
    """
    if len(names) < 2:
        raise UsageError(
            f"There is one subject, '{names[0]}', and a way leads between two.",
            'For example: profusion interpolate a.pfz b.pfz "S* as an astronaut" -o strip.png',
        )
    if frames < len(names):
        raise UsageError(
            f"--frames {frames} leaves out some of the {len(names)} subjects.", "Ask for one frame each at least."
        )


def check_way_settings(config: Config) -> None:
    """The settings mean something on a way.

    Raises:
        UsageError: several guidance scales, or weights.
    """
    if len(config.sample.subject_guidance) != 1:
        raise UsageError(
            f"{len(config.sample.subject_guidance)} guidance scales are given, and the subjects share one here.",
            "Give one number with --subject-guidance.",
        )
    if config.sample.references == "each":
        raise UsageError("sample.references=each has no meaning on a way.", "Use one or mean.")
    if config.sample.areas is not None:
        raise UsageError("sample.areas has no effect here: one subject becomes the next.", "Leave it out.")
    if config.sample.weights is not None:
        raise UsageError("sample.weights has no effect here: they shift from frame to frame.", "Leave it out.")


def draw_way(
    subjects: Sequence[Bundle],
    prompt: str,
    frames: int,
    config: Config | None = None,
    *,
    class_word: str | None = None,
    promptnet: bool = False,
    listener: Listener = LOGGED,
) -> Generator[Picture, None, None]:
    """Pictures on the way from one subject to the next (Fig. 5 of the paper), all from the same noise.

    Args:
        subjects: at least two.
        prompt: a text with S*, which stands for each subject in turn.
        frames: how many pictures, the first and the last of one subject; at least one for each subject.
        config, class_word, promptnet, listener: as for `draw`.

    Raises:
        UsageError: too few subjects or frames, or settings that mean nothing here.
        BundleError, InputError, ConfigError, UnavailableError: as `draw`.
    """
    config = _config_of(subjects, config)
    check_way([bundle.name for bundle in subjects], frames)
    check_way_settings(config)
    class_words = class_words_of(subjects, config, class_word)
    parsed = parse_prompt(prompt, config.placeholder, len(subjects))
    if len(alternatives(prompt)) > 1:
        raise InputError(f"The prompt '{prompt}' is several, for its choices.", "A way has one prompt.")
    if parsed.joint:
        raise InputError(
            f"The prompt '{parsed.text}' names the subjects, and here the placeholder stands for each in turn.",
            f"Use the plain placeholder '{config.placeholder}'.",
        )
    parents = parents_of(subjects, config, promptnet)
    opened = _opened(subjects, parents, [parsed], class_words, config, None, listener)
    return _draw_way(opened, subjects, parsed, frames, config, listener)


def _draw_way(
    opened: AbstractContextManager[Sampler],
    subjects: Sequence[Bundle],
    prompt: Prompt,
    frames: int,
    config: Config,
    listener: Listener,
) -> Generator[Picture, None, None]:
    warn_of_marks([prompt.text], listener)
    with opened as sampler:
        from profusion_cli.runtime.sampling import draw_frames, frame_weights

        shares = frame_weights(frames, len(subjects))
        words = [subject.class_word for subject in sampler.subjects]
        record = picture_record(prompt, sampler.tokens[0].twin, 0, subjects, words, config)
        with listener.progress("Interpolating", frames * len(sampler.plan.steps)) as step:
            for frame, image in enumerate(draw_frames(sampler, frames, step)):
                parameters = picture_parameters(record, config, image)
                yield Picture(image, 0, frame, {**record, "weights": list(shares[frame])}, parameters)
