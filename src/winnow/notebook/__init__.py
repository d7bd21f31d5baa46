"""Markdown lab notebooks: study cells, and results written back beside them."""
