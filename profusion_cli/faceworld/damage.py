"""Pictures of people taken apart: what a judge of structure is taught with, and tested on.

Every kind of damage is a function of a scene, a generator and a strength in [0, 1]. The generator says in which way,
the strength how much: 0 is the scene's own picture, to the bit; 0.25 is hardly seen, 1 is gross.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from profusion_cli.faceworld.data import Stream, example, pose_of
from profusion_cli.faceworld.drawing.canvas import Canvas
from profusion_cli.faceworld.drawing.face import OVERSAMPLING, draw_person, draw_whole, finished, unfinished
from profusion_cli.faceworld.drawing.person import Person, stand
from profusion_cli.faceworld.drawing.pose import Pose, random_pose
from profusion_cli.faceworld.world import Context, Identity

_MOUTH, _NOSE = ("mouth", "beard"), ("nose", "cheeks")
FACE_PARTS = (
    (("left eye", "right eye", "glasses", "brows"), _MOUTH, _NOSE),
    (("left eye",), ("right eye", "glasses", "brows"), _MOUTH, _NOSE),
)
"""Features that move together, or are missing together: with both eyes as one, and each for itself."""
PATCHES = (
    (0.0, -0.035, 0.16, 0.07),
    (-0.082, -0.035, 0.075, 0.06),
    (0.082, -0.035, 0.075, 0.06),
    (0.0, 0.142, 0.11, 0.05),
    (0.0, 0.07, 0.11, 0.12),
)
"""Both eyes, each eye, the mouth, and nose with mouth: their middle and half their extent, in the person's frame."""
WEAKEST = 0.25
"""The strength from which damage is taught."""


@dataclass(frozen=True)
class Scene:
    """What is on a picture, and the side of it in pixels."""

    who: Identity
    context: Context
    pose: Pose
    side: int

    def drawn(self, draw: Callable[[Person], None]) -> np.ndarray:
        """The drawing without its light and style, as `draw` draws the person: uint8, (3 side, 3 side, 3)."""
        return np.asarray(unfinished(self.who, self.context, self.pose, self.side, draw))

    @cached_property
    def whole(self) -> np.ndarray:
        """The drawing of a well-formed person."""
        return self.drawn(draw_whole)

    def finished(self, drawing: np.ndarray) -> np.ndarray:
        """Such a drawing as the picture: uint8, (side, side, 3)."""
        return np.asarray(finished(Image.fromarray(drawing), self.context, self.pose))

    @cached_property
    def picture(self) -> np.ndarray:
        """The picture as it is: uint8, (side, side, 3)."""
        return self.finished(self.whole)

    def person(self) -> Person:
        """The person in their frame, on a canvas of the size of `drawn`."""
        return stand(Canvas(self.side * OVERSAMPLING, self.context.style), self.who, self.context, self.pose)


def blended(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """Two framings, or two places of the person in one, cross-faded as a whole: at full strength, half of each."""
    other = _aside(scene, rng) if rng.random() < 0.4 else _reframed(scene, rng)
    return faded(scene.picture, other.picture, strength / 2)


def patched(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """Two framings cross-faded by a smooth mask: at full strength, one in some places and the other in others."""
    field = _smooth(rng, scene.side, cells=3)
    y, x = np.mgrid[: scene.side, : scene.side] / scene.side
    person = scene.person().canvas
    near = np.hypot(x - person.x, y - person.y) < 0.3
    weight = 1 / (1 + np.exp(-8 * (field - np.median(field[near])) / field.std()))
    return faded(scene.picture, _reframed(scene, rng).picture, strength * weight[..., None])


def two_heads(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """A second head of the person elsewhere in the picture, before or behind them; it grows and becomes solid."""
    size, tilt, before = rng.uniform(0.6, 1.05), rng.uniform(-25, 25), rng.random() < 0.7
    person = scene.person()
    far = (1.1 + 0.6 * size) * person.rx * person.canvas.zoom
    while True:
        x, y = rng.uniform(0.08, 0.92), rng.uniform(0.08, 0.92)
        if math.hypot(x - person.canvas.x, y - person.canvas.y) > far:
            break

    def draw(person: Person) -> None:
        head = person.moved(0, 0, size * (0.4 + 0.6 * strength), tilt)
        head.canvas.x, head.canvas.y = x, y
        for one in (True, False) if before or y > person.canvas.y else (False, True):
            draw_whole(person) if one else draw_person(None, head)

    return scene.finished(faded(scene.whole, scene.drawn(draw), min(2 * strength, 1)))


def head_moved(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """The head beside, above or within the shoulders."""
    angle, tilt = rng.uniform(0, 2 * math.pi), rng.uniform(-25, 25)
    by = 0.34 * strength

    def draw(person: Person) -> None:
        draw_person(person, person.moved(by * math.cos(angle), by * math.sin(angle), tilt=tilt * strength))

    return scene.finished(scene.drawn(draw))


def wrong_size(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """A head up to 2.2 times too large or too small for its shoulders, with its chin where it was."""
    zoom = 2.2 ** (strength * rng.choice((-1, 1)))

    def draw(person: Person) -> None:
        draw_person(person, person.moved(0, person.ry * (1 - zoom), zoom))

    return scene.finished(scene.drawn(draw))


def features_moved(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """Eyes, mouth and nose out of their places, turned, larger or smaller: together, or each its own way."""
    parts = rng.choice(FACE_PARTS)
    ways = [
        (rng.uniform(0, 2 * math.pi), rng.uniform(-40, 40), rng.uniform(0.1, 0.15), rng.uniform(-0.4, 0.6))
        for _ in parts
    ]
    if rng.random() < 0.3:
        ways = ways[:1] * len(parts)

    def draw(person: Person) -> None:
        features: dict[str, Person | None] = {}
        for names, (angle, tilt, far, more) in zip(parts, ways, strict=True):
            x, y = strength * far * math.cos(angle), strength * far * math.sin(angle)
            features |= dict.fromkeys(names, person.moved(x, y, 1 + strength * more, strength * tilt))
        draw_person(person, person, features)

    return scene.finished(scene.drawn(draw))


def features_missing(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """Eyes, mouth and nose fade out one after the other, until skin is all there is."""
    parts = rng.choice(FACE_PARTS)
    order = rng.sample(parts, len(parts))
    gone = int(strength * len(order))
    first, more = (
        scene.drawn(
            lambda person, count=count: draw_person(
                person, person, dict.fromkeys(name for names in order[:count] for name in names)
            )
        )
        for count in (gone, gone + 1)
    )
    return scene.finished(faded(first, more, strength * len(order) - gone))


def erased(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """The head, or the body, taken away from one side on, or in blots; what is behind is seen."""
    head = scene.context.framing == "close-up" or rng.random() < 0.5
    angle, blots = rng.uniform(0, 2 * math.pi), rng.random() < 0.5
    whole = scene.whole.copy()
    without = scene.drawn(lambda person: draw_person(None if not head else person, None if head else person))
    rows, columns = np.nonzero((whole != without).any(2))
    along = columns * math.cos(angle) + rows * math.sin(angle)
    order = np.argsort(_smooth(rng, len(whole), cells=7)[rows, columns] if blots else along, kind="stable")
    taken = order[: round(strength * len(order))]
    whole[rows[taken], columns[taken]] = without[rows[taken], columns[taken]]
    return scene.finished(whole)


def doubled(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """Patches of the face, with eyes, mouth or nose, once more beside themselves; one after the other, up to three."""
    person, whole = scene.person(), scene.whole
    drawing = whole
    for number, (x, y, rx, ry) in enumerate(rng.sample(PATCHES, 3)):
        angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(1.3, 1.9)
        by = far * rx * ry / math.hypot(ry * math.cos(angle), rx * math.sin(angle))
        to = person.moved(x + person.dx + by * math.cos(angle), y + by * math.sin(angle)).canvas
        across, down = _frame(to)
        solid = np.clip(4 - 4 * np.hypot(across / rx, down / ry), 0, 1) * np.clip(3 * strength - number, 0, 1)
        right, low = (round(to.side * float(one)) for one in _turned(to, by * math.cos(angle), by * math.sin(angle)))
        drawing = faded(drawing, np.roll(whole, (low, right), (0, 1)), solid[..., None])
    return scene.finished(drawing)


def smeared(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """The face drawn out of shape: in a whirl, or in waves."""
    whirl = rng.choice((-2.6, 2.6)) if rng.random() < 0.5 else 0.0
    reach = rng.uniform(0.8, 1.2)
    person = scene.person()
    middle = person.moved(rng.uniform(-0.6, 0.6) * person.rx, rng.uniform(-0.5, 0.6) * person.ry).canvas
    across, down = _frame(middle)
    window = np.clip(1 - np.hypot(across / person.rx, down / person.ry) / (1.25 * reach), 0, 1)
    turn = whirl * strength * window
    dx, dy = across * np.cos(turn) - down * np.sin(turn) - across, across * np.sin(turn) + down * np.cos(turn) - down
    if not whirl:
        dx, dy = (0.16 * strength * np.minimum(2.5 * window, 1) * _smooth(rng, middle.side, cells=9) for _ in range(2))
    whole = scene.whole
    right, low = _turned(middle, dx, dy)
    row, column = np.mgrid[: middle.side, : middle.side]
    rows, columns = ((at + by * middle.side).round().astype(int) for at, by in ((row, low), (column, right)))
    return scene.finished(whole[rows.clip(0, middle.side - 1), columns.clip(0, middle.side - 1)])


def torn(scene: Scene, rng: random.Random, strength: float) -> np.ndarray:
    """The picture cut in two through the head, and one part moved along the cut."""
    person, whole = scene.person(), scene.whole
    angle, beside = rng.uniform(0, math.pi), rng.uniform(-0.4, 0.4) * person.rx
    by = 0.16 * strength * rng.choice((-1, 1))
    across, down = _frame(person.canvas)
    part = down * math.cos(angle) - across * math.sin(angle) > beside
    ways = _turned(person.canvas, by * math.cos(angle), by * math.sin(angle))
    right, low = (round(person.canvas.side * float(one)) for one in ways)
    return scene.finished(np.where(part[..., None], np.roll(whole, (low, right), (0, 1)), whole))


Kind = Callable[[Scene, random.Random, float], np.ndarray]
TAUGHT: dict[str, Kind] = {
    "blended": blended,
    "two heads": two_heads,
    "head moved": head_moved,
    "features moved": features_moved,
    "features missing": features_missing,
    "erased": erased,
    "smeared": smeared,
    "wrong size": wrong_size,
}
"""The kinds of damage that the judge of structure learns."""
UNSEEN: dict[str, Kind] = {"patched": patched, "doubled": doubled, "torn": torn}
"""Those that it never sees."""
KINDS = {**TAUGHT, **UNSEEN}


def scene_of(number: int, split: str = "train", side: int = 64) -> Scene:
    """What is on picture `number` of `data`."""
    shown = example(number, split)
    return Scene(shown.who, shown.context, pose_of(number, split), side)


def draw_damaged(number: int, kind: str, strength: float, split: str = "train", side: int = 64) -> np.ndarray:
    """Picture `number` with this damage, always in the same way, as uint8 of shape (side, side, 3).

    Args:
        number: of `data.example`.
        kind: one of `KINDS`.
        strength: in [0, 1].
        split: of the people.
        side: of the picture in pixels.
    """
    return KINDS[kind](scene_of(number, split, side), random.Random(f"{kind} {split} {number}"), strength)


class DamagedStream(Stream):
    """Every picture twice: the first half of a step's are intact, the second half are the same ones damaged.

    Args:
        pictures: in each step.
        side: of the pictures in pixels.
        kinds: of the damage; which, and how strong, is drawn for every picture.
    """

    def __init__(self, pictures: int, side: int, kinds: Sequence[str] = tuple(TAUGHT)) -> None:
        super().__init__(pictures // 2, side)
        self.kinds = kinds

    def __getitem__(self, step: int) -> np.ndarray:
        rng = random.Random(f"damage {step}")
        scenes = [scene_of(number, side=self.side) for number in self.numbers(step)]
        damaged = [KINDS[rng.choice(self.kinds)](scene, rng, rng.uniform(WEAKEST, 1)) for scene in scenes]
        return np.stack([*(scene.picture for scene in scenes), *damaged])


def _aside(scene: Scene, rng: random.Random) -> Scene:
    """The same person in the same place and light, further to one side."""
    angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(0.04, 0.14)
    x, y = scene.pose.x + far * math.cos(angle), scene.pose.y + far * math.sin(angle)
    return replace(scene, pose=replace(scene.pose, x=x, y=y))


def faded(one: np.ndarray, two: np.ndarray, weight: float | np.ndarray) -> np.ndarray:
    """One picture with so much of another, from 0 to 1; both uint8, of one shape."""
    return (one + weight * (two.astype(np.float32) - one)).round().clip(0, 255).astype(np.uint8)


def _reframed(scene: Scene, rng: random.Random) -> Scene:
    """The same person and place, nearer or further, standing otherwise in the same light."""
    framing = {"close-up": "half-length", "half-length": "close-up"}.get(scene.context.framing)
    context = replace(scene.context, framing=framing or rng.choice(("close-up", "half-length")))
    other, pose = random_pose(rng), scene.pose
    return replace(scene, context=context, pose=replace(pose, x=other.x, y=other.y, tilt=other.tilt, turn=other.turn))


def _smooth(rng: random.Random, side: int, cells: int) -> np.ndarray:
    """A random field without edges, about -1 to 1, shape (side, side)."""
    values = np.array([[rng.uniform(-1, 1) for _ in range(cells)] for _ in range(cells)], dtype=np.float32)
    return np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC))


def _frame(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Where every pixel is in the canvas's frame: across and down, each of shape (side, side)."""
    y, x = (np.mgrid[: canvas.side, : canvas.side] + 0.5) / canvas.side
    x, y = (x - canvas.x) / canvas.zoom, (y - canvas.y) / canvas.zoom
    return x * canvas.cos + y * canvas.sin, y * canvas.cos - x * canvas.sin


def _turned(canvas: Canvas, x: float | np.ndarray, y: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A way in the canvas's frame as one in sides of the picture: to the right, and down."""
    right, down = x * canvas.cos - y * canvas.sin, x * canvas.sin + y * canvas.cos
    return np.asarray(right * canvas.zoom), np.asarray(down * canvas.zoom)
