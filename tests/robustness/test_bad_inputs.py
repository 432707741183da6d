"""Every bad input of the table: one line that says what, where and the way out, its exit code, and an unharmed disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustness.cases import CASES
from robustness.workshop import Case, Kit, digest, try_case


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Kit.make(tmp_path_factory.mktemp("kit"))


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "ptune-cache"))
    for name, value in (("TRANSFORMERS_VERBOSITY", "error"), ("TQDM_DISABLE", "1")):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.name}")
def test_a_bad_input_is_refused_and_harms_nothing(case: Case, tmp_path: Path, kit: Kit):
    if case.needs:
        pytest.importorskip(case.needs)
    result = try_case(case, tmp_path / "case", kit)
    assert not result.faults(), f"{result.faults()}\n{result.ran.err}"


def test_every_case_has_a_name_of_its_own():
    names = [(case.group, case.name) for case in CASES]
    assert len(set(names)) == len(names) >= 40


def test_harm_would_be_noticed(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "link").symlink_to("a")
    before = digest(tmp_path)
    for harm in (
        lambda: (tmp_path / "a").write_text("2"),
        (tmp_path / "new").mkdir,
        (tmp_path / "link").unlink,
        lambda: (tmp_path / "a").chmod(0o600),
    ):
        harm()
        after = digest(tmp_path)
        assert after != before
        before = after
