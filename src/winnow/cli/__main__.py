"""`python -m winnow.cli`, where the `winnow` command is not on the path."""

from __future__ import annotations

from winnow.cli import main

main()
