"""What PromptNet gains by several photos of a face-world subject: `sample.references` beside one photo.

`python -m tests.references [FIRST COUNT]`: test people from FIRST on, three photos each, tuned together by the preset;
pictures of one number have the same noise in all rows, and all but `one` are told as what they have more than it.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace

import torch

from profusion_cli import draw, load_config, make_subject
from profusion_cli.evaluation.faceworld import FaceWorldJudges
from profusion_cli.evaluation.metrics import Judged
from profusion_cli.evaluation.study.subjects import SIDE, other_pictures, unasked_traits
from profusion_cli.faceworld.drawing.face import draw_face
from profusion_cli.faceworld.drawing.pose import random_pose
from profusion_cli.faceworld.world import SPLITS, Context, identity
from tests.exports import COLUMNS, interval, means_of

WAYS = ("one", "mean", "each")
PHOTOS = ({}, {"framing": "close-up"}, {"place": "snow"})
PROMPTS = {
    "S* in anime style": {"style": "anime"},
    "S* on a beach": {"place": "beach"},
    "S* wearing a chef hat": {"headwear": "chef hat"},
}
PICTURES = 3


def main(first: str = "272", count: str = "12") -> None:
    config = load_config("faceworld", {"sample.num_images": PICTURES, "sample.batch_size": PICTURES})
    judges, scores = FaceWorldJudges({}, torch.device("cpu")), {way: [] for way in WAYS}
    for seed in SPLITS["test"][int(first) : int(first) + int(count)]:
        poses = [random_pose(random.Random(f"references {seed} {number}")) for number in range(len(PHOTOS))]
        photos = [
            draw_face(identity(seed), Context(**own), pose, SIDE) for own, pose in zip(PHOTOS, poses, strict=True)
        ]
        subject = make_subject(photos, config)
        for way in WAYS:
            drawn = draw([subject], list(PROMPTS), replace(config, sample=replace(config.sample, references=way)))
            judged = []
            for picture in drawn:
                asks = list(PROMPTS.values())[picture.prompt]
                others, traits = other_pictures(seed, asks), unasked_traits(seed, asks)
                judged.append(Judged(picture.image, photos[0], picture.record["text"], asks, others, traits))
            scores[way].append(judges.score(judged))
        print(seed, flush=True)
    means = {way: {column: means_of(people, column) for column in COLUMNS} for way, people in scores.items()}
    print(f"| one | {' | '.join(interval(means['one'][column]) for column in COLUMNS)} |")
    for way in WAYS[1:]:
        more = [interval(means[way][column] - means["one"][column], signed=True) for column in COLUMNS]
        print(f"| {way} | {' | '.join(more)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
