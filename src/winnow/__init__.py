"""Winnow: attention research on small language models, with verdicts that can be trusted."""
