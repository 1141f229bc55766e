"""Judging pictures: metrics, studies, and what people prefer."""
