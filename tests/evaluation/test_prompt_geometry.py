"""Norms, cosines, effective rank and nearest tokens, by hand; and the picture of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ptune.evaluation import prompt_picture
from ptune.evaluation.prompt_geometry import geometry, nearest_tokens, percentiles
from ptune.evaluation.prompt_picture import plot_prompt


def test_norms_and_cosines():
    found = geometry(torch.tensor([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0], [3.0, 4.1]]))
    assert found.norms.tolist()[:3] == [5.0, 10.0, 5.0]
    assert found.similarity[0, :3].tolist() == pytest.approx([1.0, -1.0, 0.0])
    assert len(found.between) == 6
    assert found.closest_pair is not None
    assert found.closest_pair[:2] == (0, 3)
    assert found.closest_pair[2] == pytest.approx((9 + 16.4) / (5 * math.hypot(3, 4.1)))


def test_one_token_has_no_pair():
    found = geometry(torch.ones(1, 8))
    assert found.closest_pair is None
    assert len(found.between) == 0
    assert found.effective_rank == pytest.approx(1)


def test_effective_rank():
    assert geometry(torch.eye(5, 9)).effective_rank == pytest.approx(5)
    assert geometry(torch.ones(6, 4)).effective_rank == pytest.approx(1, abs=1e-6)
    # Singular values 3 and 1: the entropy of (3/4, 1/4).
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert geometry(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).effective_rank == pytest.approx(expected)
    assert geometry(torch.zeros(3, 4)).effective_rank == pytest.approx(1)


def pieces(table: torch.Tensor, size: int) -> list[tuple[int, torch.Tensor]]:
    return [(first, table[first : first + size]) for first in range(0, len(table), size)]


@pytest.mark.parametrize("size", [3, 50, 100])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_nearest_tokens_are_those_of_a_plain_search(metric: str, size: int):
    torch.manual_seed(0)
    table, vectors = torch.randn(100, 6), torch.randn(4, 6)
    found = nearest_tokens(vectors, pieces(table, size), 5, metric)
    for at, vector in enumerate(vectors):
        if metric == "cosine":
            scores = torch.stack([vector @ row / (vector.norm() * row.norm()) for row in table])
        else:
            scores = torch.stack([(vector - row).norm() for row in table])
        order = scores.argsort(descending=metric == "cosine")[:5]
        assert found.ids[at].tolist() == order.tolist()
        assert found.scores[at].tolist() == pytest.approx(scores[order].tolist(), abs=1e-5)
    assert found.norms.tolist() == pytest.approx(table.norm(dim=1).tolist())


def test_an_embedding_of_nothing_is_nearest_to_nothing():
    table = torch.tensor([[0.0, 0.0], [-1.0, -1.0]])
    assert nearest_tokens(torch.ones(1, 2), [(0, table)], 5).ids.tolist() == [[1, 0]]


def test_percentiles():
    assert percentiles(torch.arange(101.0)) == (5.0, 50.0, 95.0)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_picture(tmp_path: Path, count: int):
    path = tmp_path / "prompt.png"
    plot_prompt(
        path,
        geometry(torch.randn(count, 16)),
        title="a $title$",
        nearest=[f'" word{at}"' for at in range(count)],
        vocabulary_norms=torch.rand(1000),
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    plot_prompt(path, geometry(torch.randn(count, 16)), title="without a vocabulary")


def test_text_that_cannot_be_drawn_is_escaped():
    assert prompt_picture._drawable("a$b\U00020000", {ord("a"), ord("b"), ord("$")}) == "a\\$b\\U00020000"
