"""Every input that once went wrong is tried again, and some hundred new ones a target.

The corpus is made of what was found by reading the code and by long runs of `tests/fuzz/run.py`; where an input was
made by hand, the file's name says what is wrong with it. The new inputs are the same in every run.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutate import DTYPES, mutate_json, mutate_safetensors
from fuzz.targets import TARGETS, Escaped, Target, attempt, watched
from ptune.errors import PTuneError

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.rglob("*") if path.is_file())
OUTCOMES: dict[str, str] = json.loads((Path(__file__).parent / "outcomes.json").read_text(encoding="utf-8"))
"""What comes of each: the kind of error, or `read` for what is odd and can be used."""
QUICK = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("a file that nothing may open")
    inside = tmp_path / "in"
    inside.mkdir()
    return inside


def test_every_input_has_an_outcome() -> None:
    assert list(OUTCOMES) == KEPT


@pytest.mark.parametrize("name", KEPT)
def test_what_was_found_once_is_refused(name: str, folder: Path):
    outcome, line = attempt(TARGETS[name.partition("/")[0]], (CORPUS / name).read_bytes(), folder)
    assert outcome == OUTCOMES[name], line


@pytest.mark.parametrize("target", TARGETS)
def test_the_seeds_are_sound(target: str, folder: Path):
    for name, data in TARGETS[target].seeds().items():
        assert attempt(TARGETS[target], data, folder) == ("read", ""), name


@pytest.mark.parametrize("target", TARGETS)
@QUICK
@given(seed=st.integers(0, 2**32), times=st.integers(1, 4))
def test_changed_seeds_are_read_or_refused(target: str, folder: Path, seed: int, times: int):
    rng = Random(seed)
    data = rng.choice(list(TARGETS[target].seeds().values()))
    for _ in range(times):
        data = TARGETS[target].mutate(data, rng)
    attempt(TARGETS[target], data, folder)


@pytest.mark.parametrize("target", TARGETS)
@QUICK
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(target: str, folder: Path, data: bytes):
    attempt(TARGETS[target], data, folder)


def _target(read: object) -> Target:
    return Target(read, mutate_json, dict)  # type: ignore[arg-type]


def test_what_no_file_may_cause_is_noticed(folder: Path):
    def opens(data: bytes, place: Path) -> None:
        with watched(place):
            (place / ".." / "secret.txt").read_text()

    def writes(data: bytes, place: Path) -> None:
        with watched(place):
            (place / "new").write_text("x")

    def shouts(data: bytes, place: Path) -> None:
        raise PTuneError("x" * 10_000, hint="y" * 10_000)

    def escapes(data: bytes, place: Path) -> None:
        raise KeyError("a defect")

    for read in (opens, writes):
        with pytest.raises(Escaped, match="open"):
            attempt(_target(read), b"", folder)
    assert len(attempt(_target(shouts), b"", folder)[1]) < 2000
    with pytest.raises(KeyError):
        attempt(_target(escapes), b"", folder)


def test_mutations_reach_what_they_are_for():
    """Of a safetensors file every dtype is tried, and the header stays one that can be read often enough."""
    seed = TARGETS["training-state"].seeds()["run"]
    made = [mutate_safetensors(seed, Random(number)) for number in range(3000)]
    for kind in DTYPES:
        if isinstance(kind, str) and kind:
            assert any(f'"dtype": "{kind}"'.encode() in one for one in made), kind
    assert len(set(made)) > 300
