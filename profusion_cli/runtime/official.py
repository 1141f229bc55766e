"""From the authors' released layout to a promptnet bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from profusion_cli.bundle import Bundle, make_bundle
from profusion_cli.bundle.kinds import PROMPTNET_FILE
from profusion_cli.config import BaseConfig, ComponentConfig
from profusion_cli.errors import UsageError
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import DTYPES, Placement
from profusion_cli.runtime.hub import Source
from profusion_cli.runtime.weights import pack, promptnet_section, read_official


def import_official(id: str, subfolder: str, revision: str | None, save_dtype: str) -> tuple[Bundle, dict[str, Any]]:
    """A promptnet bundle from a PromptNet in the authors' layout.

    Where its base model lies beside it in the same folder, the bundle remembers the fingerprint.

    Returns:
        The bundle, and a summary: its SHA-256, its parameters, and the dropped weights.

    Raises:
        UnavailableError: it cannot be had or is not in that layout.
        UsageError: an unknown precision.
    """
    if save_dtype not in DTYPES:
        raise UsageError(f"--save-dtype '{save_dtype}' is unknown.", f"Use one of {', '.join(DTYPES)}.")
    promptnet, dropped, hashes = read_official(Source(id, revision, subfolder, "FOLDER"))
    base: dict[str, Any] = {"id": None, "revision": None, "fingerprint": {}}
    folder = Path(id).expanduser()
    if (folder / "unet").is_dir() and (folder / "openclip").is_dir():
        openclip = ComponentConfig("openclip")
        beside = BaseConfig(str(folder.resolve()), text_encoder=openclip, vision=openclip, clip_skip=1)
        model = BaseModel(beside, Placement(torch.device("cpu"), torch.float32, torch.float32, "no"))
        base = model.manifest(model.fingerprints("unet", "text_encoder"))
    manifest = {
        "kind": "promptnet",
        "base": base,
        "config": {},
        "seed": None,
        "inputs": [{"kind": "weights", "name": name, "sha256": digest} for name, digest in hashes.items()],
        "parents": [],
        "promptnet": promptnet_section(promptnet),
        "promptnet_source": {"weights": id, "revision": revision, "dropped": list(dropped)},
    }
    files = {PROMPTNET_FILE: pack(promptnet.state_dict(), DTYPES[save_dtype])}
    bundle = make_bundle(manifest, files)
    parameters = sum(parameter.numel() for parameter in promptnet.parameters())
    return bundle, {"sha256": bundle.sha256, "kind": "promptnet", "parameters": parameters, "dropped": list(dropped)}
