"""Requests made from the server's own description, sensible and senseless, get what it describes, and never a 5xx."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from running_servers import KEY, Running

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402


@pytest.fixture(scope="module")
def described(serve: Callable[..., Running], prompt_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The description of a server on which prompts can be changed too."""
    root = tmp_path_factory.mktemp("described")
    shutil.copytree(prompt_folders / "p0", root / "p0")
    running = serve(prompts_root=root, max_tokens=8)
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"})


CHECKS = (
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.negative_data_rejection,
)


def try_each(described: Any, most: int) -> None:
    """So many requests of each kind to each operation."""
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 10
    positive, negative = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    answered = [*(try_one(operation, positive, most) for operation in operations)]
    for operation in operations:
        if operation.body:  # otherwise nothing of it can be wrong
            try_one(operation, negative, most)
    good = {label for seen in answered for label, status in seen if status < 300}
    assert good >= {"POST /v1/completions", "POST /v1/chat/completions", "GET /v1/models", "GET /v1/prompts"}


def try_one(operation: Any, mode: Any, most: int) -> set[tuple[str, int]]:
    """The operation and the status of each answer."""
    seen: set[tuple[str, int]] = set()

    @settings(max_examples=most, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if mode is schemathesis.GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "p0"  # one that is there, so that more is looked at than its name
        answer = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS)
        seen.add((operation.label, answer.status_code))

    check()
    return seen


def test_a_few_of_each(described: Any) -> None:
    try_each(described, 15)


@pytest.mark.slow
def test_many_of_each(described: Any) -> None:
    try_each(described, 500)
