"""ProFusion: one picture of a face or thing becomes a model that draws it anywhere."""

__version__ = "0.1.0"
