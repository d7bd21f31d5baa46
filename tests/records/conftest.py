"""Where runs are uploaded to in tests: a folder, and a real S3 server that misbehaves on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from winnow.records.remote import Remote

if TYPE_CHECKING:
    from tests.records.s3_server import S3Server


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    from tests.records.s3_server import S3Server  # it takes a second

    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield server
    server.close()


@pytest.fixture
def s3(server: S3Server) -> Iterator[S3Server]:
    server.faults.clear()
    yield server
    server.faults.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Remote:
    return Remote(f"file://{tmp_path / 'remote'}")
