"""What a bundle or a picture is, in some fifteen lines. Anyone may have written what they say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from profusion_cli.plans import EXACT

LONGEST_TEXT = 100
MOST_ORIGINS = 5


def summary(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to say of a file at first.

    Args:
        entry: all that is known of it, as `profusion inspect --json` tells it.

    Returns:
        Texts by short names; what is not known is left out.
    """
    lines = {key: entry.get(key) for key in ("file", "is")}
    lines |= {"size": size_words(entry["size"]), "sha256": entry["sha256"]} if "size" in entry else {}
    if "manifest" in entry:
        lines |= {**KINDS[entry["manifest"]["kind"]](entry["manifest"]), **_making(entry["manifest"])}
    elif "record" in entry:
        lines |= _picture(entry["record"])
    elif "results" in entry:
        lines |= _run(entry["results"])
    elif "checkpoints" in entry:
        lines |= _training(entry)
    elif "width" in entry:
        lines["pixels"] = f"{entry['width']}x{entry['height']}"
    if entry.get("made_from"):
        lines["made from"] = _origins(entry["made_from"])
    return {key: value for key, value in lines.items() if value not in (None, "", [])}


def size_words(size: int) -> str:
    """A number of bytes for people: `19.2 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


def find(tree: Any, *path: str) -> Any:
    """What lies at the end of a path of keys; None where there is no such path."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def shown(value: Any) -> str:
    """A text, a number, or several of them, in one line that is not long; empty for anything else."""
    if isinstance(value, list):
        return " / ".join(shown(one) for one in value[:MOST_ORIGINS] if isinstance(one, str | int | float))
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split()) if isinstance(value, str | int) else ""
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."


def _told(template: str, *values: Any) -> str:
    """A phrase with values in it; empty where one of them is not known."""
    texts = [shown(value) for value in values]
    return template.format(*texts) if all(texts) else ""


def _joined(*phrases: str) -> str:
    return ", ".join(filter(None, phrases))


def _making(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What every bundle says: its parts, and by what it was made."""
    parts = {name.partition(".")[0]: find(file, "size") for name, file in manifest["files"].items()}
    return {
        "parts": ", ".join(f"{name} {size_words(size)}" for name, size in parts.items()),
        "made by": _joined(
            _told("{} {}", find(manifest, "tool", "name"), find(manifest, "tool", "version")),
            _told("seed {}", manifest["seed"]),
        ),
    }


def _base(source: Mapping[str, Any]) -> str:
    """The base model that a bundle was made on."""
    config = partial(find, source, "config")
    named = shown(find(source, "base", "id")) or shown(config("base", "id"))
    return _joined(named, _told("{} pixels", config("base", "resolution")), _told("by the preset {}", config("preset")))


def _sampling(sample: Any, plan: Any) -> str:
    """The settings that pictures are drawn with, and the plan that they name; None: they name none."""
    taken, steps = find(plan, "steps"), find(sample, "steps")
    if isinstance(taken, int) and isinstance(steps, int):
        taken = min(taken, steps)
    return _joined(
        "" if plan is None else _told("{}", find(sample, "speed")),
        f"{_told('{} of ', taken)}{_told('{} steps', steps)}",
        _told("sampler {}", find(sample, "sampler")),
        _told("gamma {}", find(sample, "gamma")),
        *(_told(f"{name} guidance {{}}", find(sample, f"{name}_guidance")) for name in ("subject", "text", "fusion")),
    )


def _plan_in(config: Any) -> Any:
    """The plan that a configuration draws by; None: the exact algorithm."""
    speed = find(config, "sample", "speed")
    return find(config, "plans", speed) if isinstance(speed, str) and speed != EXACT else None


def _views(record: Any) -> str:
    """How many pictures were made of the photo, and how."""
    views, dropped = find(record, "views"), find(record, "dropped")
    if not isinstance(views, list):
        return ""
    return _joined(
        f"{len(views)} made from the photo",
        "backgrounds inpainted" if find(record, "inpainted") is True else "on plain colours",
        f"{len(dropped)} left out" if isinstance(dropped, list) and dropped else "",
    )


def _subject(manifest: Mapping[str, Any]) -> dict[str, str]:
    own, tuning = partial(find, manifest), partial(find, manifest, "config", "finetune")
    training = _joined(
        _told("{} steps of {} pictures", tuning("steps"), tuning("batch_size")),
        _told("of {} that there are", own("pictures")),
        _told("loss {} to {}", own("loss", "first"), own("loss", "last")),
    )
    return {
        "of": shown(own("config", "class_word")),
        "consent": shown(own("consent")),
        "base": _base(manifest),
        "method": _joined(shown(tuning("method")), _told("{} trained", tuning("train"))),
        "training": "none" if tuning("steps") == 0 else training,
        "views": _views(own("augmentation")),
        "promptnet": shown(own("promptnet_source", "weights")),
        "compressed": _told("to rank {}, predictions off by {}", own("compressed", "rank"), own("compressed", "error")),
        "S*": _told("{} times as long as an ordinary word", own("s_star", "length_in_ordinary_words")),
        "drawn with": _sampling(own("config", "sample"), _plan_in(own("config"))),
    }


def _images(manifest: Mapping[str, Any]) -> dict[str, str]:
    own = partial(find, manifest, "augmentation")
    return {
        "of": shown(find(manifest, "config", "class_word")),
        "views": _views(own()),
        "subject found by": shown(own("mask")),
        "inpainted by": shown(find(manifest, "base", "id")) if own("inpainted") is True else "",
        "prompt": shown(own("prompt")),
    }


def _promptnet(manifest: Mapping[str, Any]) -> dict[str, str]:
    source, own = partial(find, manifest, "promptnet_source"), partial(find, manifest, "promptnet")
    training = _joined(_told("{} steps", source("steps")), _told("on {} pictures", source("pictures")))
    return {
        "weights": _joined(shown(source("weights")), _told("revision {}", source("revision"))),
        "training": training,
        "base": _base(manifest),
        "S*": _told("of {} numbers", own("embedding_dim")),
    }


KINDS = {"subject": _subject, "images": _images, "promptnet": _promptnet}
"""What is told of each kind of bundle."""


def _picture(record: Any) -> dict[str, Any]:
    """What a picture says of its making."""
    from profusion_cli.images.marks import SOURCE_TYPE

    own = partial(find, record)
    subjects = own("subjects")
    names = [shown(find(subject, "name")) for subject in subjects] if isinstance(subjects, list) else []
    return {
        "prompt": shown(own("prompt")),
        "seed": own("seed") if isinstance(own("seed"), int) else None,
        "subjects": shown(names),
        "base": shown(own("base", "id")),
        "drawn with": _sampling(own("sample"), own("plan")),
        "view": shown(own("number")),
        "marked": _mark(own(SOURCE_TYPE)) if own("tool", "name") else "",
        "made by": _told("{} {}", own("tool", "name"), own("tool", "version")),
    }


def _mark(source_type: Any) -> str:
    """What programs are told of who has drawn a picture, in a word."""
    return f"{shown(source_type).rpartition('/')[2]} (IPTC digital source type)" if source_type is not None else "not"


def _run(results: Any) -> dict[str, Any]:
    """What a study's run has made so far; `results` is None where it has not got so far."""
    pictures = find(results, "pictures")
    rows = pictures if isinstance(pictures, list) else []
    names = {key: list(dict.fromkeys(shown(find(row, key)) for row in rows)) for key in ("method", "subject")}
    failed = find(results, "failed")
    return {
        "study": shown(find(results, "study")),
        "pictures": _joined(
            f"{len(rows)}", f"of {len(names['subject'])} subjects", f"by {len(names['method'])} methods"
        ),
        "methods": shown(names["method"]),
        "base": shown(find(results, "base", "id")),
        "devices": shown(find(results, "devices")),
        "failed": f"{len(failed)} cells" if isinstance(failed, list) and failed else "",
    }


def _training(entry: Mapping[str, Any]) -> dict[str, Any]:
    """How far a pre-training has come."""
    last, checkpoints = partial(find, entry, "last"), entry["checkpoints"]
    return {
        "done": _joined(_told("{} steps", last("step")), _told("loss {}", last("loss"))),
        "checkpoints": _joined(f"{len(checkpoints)}", *([f"the newest {checkpoints[-1]}"] if checkpoints else [])),
        "going on": "the same `profusion pretrain` with --resume" if checkpoints else "",
    }


def _origins(made_from: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files that a file was made from, the first few by name."""
    lines = [
        _joined(
            shown(origin["what"]),
            _told("sha256 {}...", str(origin["sha256"])[:16]),
            _told("which is the file {}", origin.get("is_the_file")),
        )
        for origin in made_from[:MOST_ORIGINS]
    ]
    more = len(made_from) - len(lines)
    return [*lines, f"and {more} more"] if more > 0 else lines
