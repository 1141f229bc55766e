"""What people prefer.

A `page` of blinded pairs of pictures for raters, from the `entries` of a run; the `key` that tells whose pictures they
are; the raters' `answers`, and what these say (`summary`). `reading` is of both files.
"""
