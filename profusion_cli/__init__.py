"""ProFusion: one picture of a face or thing becomes a model that draws it anywhere.

What the commands do is here for Python too; each loads what it needs when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profusion_cli.jobs.configuration import load_config
    from profusion_cli.jobs.pictures import draw, draw_way
    from profusion_cli.jobs.subject import make_subject
    from profusion_cli.jobs.views import make_views

__version__ = "0.1.0"
__all__ = ["draw", "draw_way", "load_config", "make_subject", "make_views"]
_PLACES = {
    "draw": "pictures",
    "draw_way": "pictures",
    "load_config": "configuration",
    "make_subject": "subject",
    "make_views": "views",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"profusion_cli.jobs.{_PLACES[name]}"), name)
