"""`python -m flattail`."""

from .cli import app

app()
