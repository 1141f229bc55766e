"""The methods of `profusion finetune`: ProFusion, and the baselines that the paper compares it with.

What a method sets beside the preset follows its own paper, for Stable Diffusion. A preset may say otherwise, under
`methods`, by the name of the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROFUSION = "profusion"
WORD_METHODS = ("textual-inversion", "dreambooth")
"""Whose S* is an ordinary word, the same at every timestep, instead of PromptNet's."""

TEMPLATES = (
    *("a photo of S*", "a rendering of S*", "a cropped photo of S*", "the photo of S*", "a photo of a clean S*"),
    *("a photo of a dirty S*", "a dark photo of S*", "a photo of my S*", "a photo of the cool S*"),
    *("a close-up photo of S*", "a bright photo of S*", "a photo of the nice S*", "a good photo of S*"),
    *("a rendition of S*", "a photo of the small S*", "a photo of one S*", "a depiction of S*"),
)
"""Neutral contexts for textual inversion, after its paper's appendix (arXiv 2208.01618)."""

PLAIN = {"sampler": "cfg", "subject_guidance": 7.5}

METHODS: dict[str, dict[str, Any]] = {
    PROFUSION: {},
    "e4t": {
        "finetune": {
            "steps": 15,
            "batch_size": 16,
            "learning_rate": 1.6e-5,
            "draws": "independent",
            "train": "attention",
            "embedding_l2": 0.01,
        },
        "sample": PLAIN,
    },
    "textual-inversion": {
        "finetune": {
            "steps": 6100,
            "batch_size": 2,
            "learning_rate": 0.01,
            "draws": "independent",
            "train": "promptnet",
            "prompts": list(TEMPLATES),
        },
        "sample": PLAIN,
    },
    "dreambooth": {
        "finetune": {
            "steps": 800,
            "batch_size": 1,
            "learning_rate": 5.0e-6,
            "draws": "independent",
            "train": "unet",
            "word": "a sks {class}",
            "prior_pictures": 200,
            "prior_weight": 1.0,
            "gradient_accumulation": 1,
        },
        "sample": PLAIN,
    },
}
"""What each method sets beside the preset.

- `e4t` (Encoder-based domain tuning, arXiv 2302.12228): an encoder that was pre-trained with lambda ||S*||^2, eq. (2)
  here, then 5 to 15 steps of 16 pictures on the one photo; the learning rate is 1e-6 for each of them. Its encoder
  comes from `profusion pretrain --embedding-l2`. Not from its paper: it tunes offsets of low rank to all attention
  weights, and here the attention is tuned as ProFusion's is, so that the rows differ in the regularisation and the
  sampling alone; and lambda 0.01, of the mean over the elements.
- `textual-inversion` (arXiv 2208.01618): one word, started from the class word, in neutral contexts; 6100 steps of 2
  pictures at 5e-3 for each of them, as its authors configure it for Stable Diffusion
  (https://github.com/rinongal/textual_inversion, configs/stable-diffusion/v1-finetune.yaml). `embedding_l2` is the
  lambda of its pull to the coarse word, 0 there; it weighs the mean over the word's elements, where theirs weighs the
  sum.
- `dreambooth` (arXiv 2208.12242): the whole UNet, a rare identifier before the class word, and as many pictures of
  the class by the base model, weighed 1, against language drift; for Stable Diffusion 800 steps at 5e-6 and 200
  pictures of the class, as in diffusers' training example
  (https://huggingface.co/docs/diffusers/training/dreambooth). The text encoder stays frozen.

All three sample with plain classifier-free guidance of 7.5, Stable Diffusion's usual scale.
"""


def method_of(values: Mapping[str, Any]) -> str | None:
    """The method that a mapping of configuration keys names, if it names one."""
    section = values.get("finetune")
    return section.get("method") if isinstance(section, Mapping) else None


def class_noun(class_word: str) -> str:
    """The class word without its article: "person" of "a person"."""
    article, _, noun = class_word.strip().partition(" ")
    return noun.strip() if article.lower() in ("a", "an", "the") and noun.strip() else class_word.strip()


def is_word_method(method: str) -> bool:
    """Whether its S* is an ordinary word."""
    return method in WORD_METHODS
