"""The mechanism that docs/mechanisms.md shows keeps the contract."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.attention import test_contract as contract
from tests.settings import BASES, verdicts_at

from winnow.attention import AttentionConfig

GUIDE = Path(__file__).parents[2] / "docs" / "mechanisms.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "window.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("window").WindowConfig()
    del sys.modules["window"]
    del AttentionConfig.members["window"]


def test_the_guide_is_right(shown) -> None:
    for documents in (None, contract.DOCUMENTS):
        contract.test_changing_a_token_never_alters_rows_before_it(shown, documents)
    contract.test_nothing_crosses_documents(shown)
    contract.test_equals_its_oracle_in_values_and_gradients(shown, 2, True)
    contract.test_prefill_and_steps_equal_the_whole(shown, 2)
    for policy in (contract.WindowConfig(sinks=1), contract.H2OConfig()):
        contract.test_a_pruned_cache_gives_what_pruned_evaluation_gives(shown, policy)
    contract.test_config_round_trips_whole(shown)
    found = list(verdicts_at({**BASES["gpt"], "attention": {"kind": "window"}}, ("attention",)))
    assert found
    assert [verdict.field for verdict in found if verdict.dead] == []
    contract.test_parameters_are_declared_with_slices_per_head(shown)
    contract.test_costs_grow_with_the_context(shown)
