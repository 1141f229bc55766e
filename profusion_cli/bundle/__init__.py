"""Bundles (`.pfz`): one ZIP of stored entries, read and written without trusting a single byte.

The entries, in this order: `manifest.yaml`, one or more `*.safetensors`, and maybe `preview.png`.
Nothing is executed, and nothing goes to the disk.

- `reading`: the `Bundle`, verified as a whole
- `writing`: making one
- `container`: the ZIP file
- `kinds`: the kinds of bundles, and the files that they hold
- `manifest`: what a manifest must say
- `plain_yaml`: the YAML that it is written in
- `tensors`: the safetensors files
- `refusal`: what is wrong with any of them, in words
"""

from profusion_cli.bundle.container import looks_like_bundle
from profusion_cli.bundle.reading import Bundle, read_bundle
from profusion_cli.bundle.writing import make_bundle

__all__ = ["Bundle", "looks_like_bundle", "make_bundle", "read_bundle"]
