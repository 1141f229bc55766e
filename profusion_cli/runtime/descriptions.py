"""The JSON files that describe a model's parts: read, and checked before a library believes them."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from profusion_cli.bundle.refusal import show
from profusion_cli.errors import UnavailableError

NEEDED = (
    *("in_channels", "latent_channels", "block_out_channels", "scaling_factor", "num_hidden_layers", "hidden_size"),
    "num_train_timesteps",
)
"""What is computed with here, and so may not be null."""
UNWANTED = ("quantization_config", "auto_map")
"""What asks for a further library, or for code from elsewhere."""


def read_description(path: Path, hint: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        hint: what to do where it is none.

    Raises:
        UnavailableError: it cannot be read, is no JSON, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = getattr(error, "strerror", None) or "it is no JSON"
        raise UnavailableError(f"'{path}' cannot be read: {problem}.", hint) from error
    if not isinstance(values, dict):
        raise UnavailableError(f"'{path}' holds {show(values)}, and a JSON object belongs there.", hint)
    return values


def describe_part(path: Path, cls: Any, section: str, hint: str) -> dict[str, Any]:
    """What a part's description says, with the values of the class itself where it says nothing.

    Args:
        path: of the JSON file.
        cls: that is built from it, of diffusers or transformers.
        section: the key under which a description of several parts has this one's; '' where there is none.
        hint: as for `read_description`.

    Raises:
        UnavailableError: as `read_description`; a value of another kind than the class's own; or code from elsewhere
            or a further library is asked for.
    """
    whole, defaults = read_description(path, hint), _defaults(cls)
    values = whole[section] if isinstance(whole.get(section), dict) else whole
    for key in UNWANTED:
        if whole.get(key) is not None or values.get(key) is not None:
            raise UnavailableError(f"'{path}' asks for {key}, and so is not loaded.", "Point to the plain model.")
    for key, default in defaults.items():
        if key in values and not _is_like(values[key], default, key):
            told, own = show(values[key]), show(default)
            raise UnavailableError(f"'{path}' says {key}={told}, where something like {own} belongs.", hint)
    return {**defaults, **values}


def _defaults(cls: Any) -> dict[str, Any]:
    if hasattr(cls, "config_class"):  # transformers
        return cls.config_class().to_dict()
    parameters = inspect.signature(cls.__init__).parameters
    return {name: one.default for name, one in parameters.items() if one.default is not inspect.Parameter.empty}


def _is_like(value: Any, default: Any, key: str) -> bool:
    """Whether a value can stand where a class has this default; a list of such values can, too."""
    if value is None:
        return key not in NEEDED
    if isinstance(default, tuple) and default:
        return isinstance(value, list) and len(value) > 0 and all(_is_like(item, default[0], key) for item in value)
    if isinstance(value, list) and isinstance(default, bool | int | str) and key not in NEEDED:
        return all(_is_like(item, default, key) for item in value)
    if isinstance(default, int | float):
        kind = int if isinstance(default, int) and key in NEEDED else int | float
        return isinstance(value, kind) and abs(value) <= sys.float_info.max
    return not isinstance(default, str) or isinstance(value, str)


def misfit(unet: Mapping[str, Any], vae: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> str:
    """Why these parts do not belong together, by their descriptions; nothing where they do."""
    channels, width = unet["in_channels"], unet["cross_attention_dim"]
    if channels not in (vae["latent_channels"], 2 * vae["latent_channels"] + 1):  # beside a mask and what it leaves
        return f"the UNet takes {channels} channels, and the VAE gives {vae['latent_channels']}"
    if isinstance(width, int) and width != text_encoder["hidden_size"]:
        return f"the UNet takes words of width {width}, and the text encoder gives {text_encoder['hidden_size']}"
    return ""


def shards_of(index: Mapping[str, Any], path: Path, hint: str) -> Sequence[str]:
    """File names of a sharded checkpoint, sorted.

    Args:
        index: what its index says.
        path: of the index.
        hint: what to do where it says something else.

    Raises:
        UnavailableError: it names no files, or files elsewhere.
    """
    shards = index.get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    if not names or not all(isinstance(name, str) and name.isprintable() and Path(name).name == name for name in names):
        raise UnavailableError(f"'{path}' is an index that names no files of weights beside it (weight_map).", hint)
    return sorted(set(names))
