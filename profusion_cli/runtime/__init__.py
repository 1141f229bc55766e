"""Everything that touches tensors; the only package that imports torch."""
