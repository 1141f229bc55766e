"""Options of the commands: those that set keys of the configuration, made from its fields, and the few that do not."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, get_type_hints

import typer

from profusion_cli.errors import ConfigError, UsageError
from profusion_cli.keys import Key, all_keys, keys_with_flags
from profusion_cli.mappings import flat
from profusion_cli.settings import AUGMENTATION, CONFIGURATION, OUTPUT

MACHINE = ("device", "dtype", "seed", "deterministic")
"""Keys that every command that computes takes."""
DRAWING = (
    "sample",
    "placeholder",
    "class_word",
    "base.id",
    "promptnet.weights",
    *MACHINE,
    "compile",
    "offload",
    "mark",
)
"""Keys that a command takes which draws finished subjects."""

PHOTO_LIMITS = "at most 100 megapixels, or 50 as WebP, TIFF, AVIF or JPEG 2000"
"""Of `profusion_cli.images.opening`, in words."""
PRESET_HELP = "Base model and defaults: a shipped preset (see `profusion presets`) or a YAML file."


def preset_names(incomplete: str) -> list[str]:
    """The shipped presets whose names begin so, for the shell's completion."""
    from profusion_cli.presets import shipped_presets

    return [name for name in shipped_presets() if name.startswith(incomplete)]


Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME|FILE",
        help=PRESET_HELP,
        autocompletion=preset_names,
        rich_help_panel=CONFIGURATION,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any key of the resolved configuration (see `profusion presets --keys`); may be repeated.",
        rich_help_panel=CONFIGURATION,
    ),
]
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
TrustBase = Annotated[
    bool,
    typer.Option(
        "--trust-base",
        help="Load models from wherever the bundle says, and ask no more about these places.",
        rich_help_panel=CONFIGURATION,
    ),
]
Sign = Annotated[
    str | None,
    typer.Option(
        "--sign",
        metavar="CERT",
        help="Sign pictures with this certificate (PEM, with those above it), by C2PA content credentials that name "
        "the subject and its photos; wants `pip install 'profusion[sign]'`.",
        rich_help_panel=OUTPUT,
    ),
]
SignKey = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="The private key of --sign (PEM).", rich_help_panel=OUTPUT),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check all that needs no model, print the resolved configuration as YAML, and stop.",
        rich_help_panel=CONFIGURATION,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output files.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notes or warnings.", rich_help_panel=OUTPUT)]


def takes(*names: str, without: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of keys of the configuration.

    The command gets what was given of them as `flags`: values by the names of their keys, for `resolve_config`. The
    options stand before its own of configuration and output.

    Args:
        names: of keys, and of sections whose keys with a flag are all taken.
        without: keys that are not, all the same.
    """
    keys = [key for key in keys_with_flags(names) if key.name not in without]
    parameters = {key.name.replace(".", "_"): key for key in keys}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            given = {key: arguments.pop(name) for name, key in parameters.items()}
            flags = {
                key.name: _value(key, value) for key, value in given.items() if value is not None and value is not False
            }
            command(**arguments, flags=flags)

        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "flags"
        ]
        taken = [_parameter(name, key) for name, key in parameters.items()]
        shared = next((place for place, parameter in enumerate(own) if parameter.name in SHARED), len(own))
        wrapper.__signature__ = inspect.Signature([*own[:shared], *taken, *own[shared:]])
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *taken)}
        return wrapper

    return decorate


SHARED = ("preset", "settings", "trust_base", "dry_run", "force", "as_json", "quiet")
"""Parameters that stand behind the keys' own."""


def _parameter(name: str, key: Key) -> inspect.Parameter:
    """A command's parameter for a key: None where it is not given, which leaves the key as it is."""
    option = typer.Option(
        *key.flags,
        help=key.help,
        metavar=key.field.metadata["metavar"],
        rich_help_panel=key.field.metadata["panel"],
    )
    if key.is_switch:
        hint, default = bool, False
    else:
        inner = key.value_type
        hint, default = (inner if inner in (int, float) and not key.words else str) | None, None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option])


def tell_defaults(parameters: Iterable[Any]) -> None:
    """Say in the help of options where their defaults come from, and what they are in the default preset.

    Args:
        parameters: of a command, as Typer has made them.
    """
    from profusion_cli.presets import default_preset, read_preset

    preset = default_preset()
    try:
        values = flat(read_preset(preset))
    except ConfigError:  # which help is no place to tell
        values = None
    keys = {key.name.replace(".", "_"): key for key in all_keys().values() if key.flags}
    for parameter in parameters:
        if key := keys.get(parameter.name):
            parameter.help = f"{key.help}{default_words(key, preset, values)}"
        elif parameter.name == "preset":
            parameter.help = f"{PRESET_HELP} Default: {preset}."


def default_words(key: Key, preset: str, values: Mapping[str, Any] | None) -> str:
    """A sentence on a key's default, after a space; empty where there is nothing to say.

    Args:
        key: of the configuration.
        preset: the name of the default preset.
        values: what it says, by dotted keys; None: it cannot be read.
    """
    if key.is_switch:
        return ""
    if values is None:
        return " Default from the preset."
    value = values.get(key.name, None if key.is_required else key.default)
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if value is None or not shown:
        return ""
    return f" Default from the preset {preset}: {shown}." if key.name in values else f" Default: {shown}."


def _value(key: Key, given: Any) -> Any:
    """The value of a key that an option's text says."""
    if key.is_switch:
        return not key.flag.startswith("--no-")
    if key.words and key.value_type is int and given.isdecimal():
        return int(given)
    return numbers(given, key.flag) if key.is_list else given


def numbers(text: str, option: str) -> list[float]:
    """Numbers with commas between.

    Raises:
        UsageError: something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} '{text}' is not a number, nor numbers with commas between.",
            f"For example: {option} 7 or {option} 5,2",
        ) from None
