"""A study's results as files: Markdown and pictures, where they belong."""

from __future__ import annotations

from winnow.notebook.execute import Results, Source, results_path
from winnow.notebook.results import results_markdown
from winnow.records.store import RunStore
from winnow.study.compare import Comparison


def results_of(source: Source, comparison: Comparison, store: RunStore) -> Results:
    """What is to be written about a study. The same records give the same bytes."""
    pictures = drawn(source, comparison, store)
    path = results_path(source, comparison.study)
    return Results(results_markdown(comparison, pictures, path, heading=path != source.path), pictures)


def drawn(source: Source, comparison: Comparison, store: RunStore) -> dict[str, bytes]:
    """The study's pictures by file name; one that exists and shows the same numbers is not drawn again."""
    from winnow.analysis.pictures import study_pictures

    present: dict[str, bytes] = {}
    for kind in ("curves", "differences"):
        path = source.path.with_name(f"{comparison.study.plan_name}.{kind}.png")
        try:
            present[path.name] = path.read_bytes()
        except OSError:
            continue  # absent, or unreadable: it is drawn and writing says what is wrong
    return study_pictures(comparison, store, present)
