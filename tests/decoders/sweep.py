"""What ptune makes of one architecture, held against the bare model: right, refused, wrong, or broken.

The bare model says what is right, by code of the sweep's own: each row alone behind the virtual tokens, without
padding and without a cache (`Reference`). ptune is given all rows in one batch, padded on either side, on every way
that it takes through this model: keys and values (`prefix`), `concatenation`, `packed`.

- Forward: logits of every text token, and the loss; and with a prompt a row, of different lengths or none.
- Gradient: of the loss by the prompt's vectors; the reference adds up the rows by hand.
- Generation: greedy and with three beams, token for token; greedy with a prompt a row too.

An architecture is right where all of that is. It is refused where a `PTuneError` says so in one line. Everything else
is a fault of ptune's: `wrong` numbers, or an `error` of somebody else's.

Shapes: `B` rows, `T` text tokens, `P` virtual tokens, `D` token dimension, `V` vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from decoders.small import BOS, EOS, FLOAT32_ALONE, PAD, VOCABULARY, small_decoder
from ptune import PromptTuningConfig, PTunedModel
from ptune.data.collate import PackingCollator
from ptune.errors import PTuneError

LENGTHS = (13, 5, 9)
VIRTUAL = 6
NEW = 6
DEFAULT, SHORT = "default", "short"
"""Prompts: of `VIRTUAL` tokens, and of the first half of them."""
TOLERANCE = 1e-4
"""Relative; routers, norms and scans compute in float32 whatever the dtype. What is wrong is off by 1e-2 and more."""
_FIRST_ORDINARY = max(PAD, EOS, BOS) + 1
_LAST_ORDINARY = VOCABULARY - 5
"""Multimodal configurations have their image tokens among the last ones."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    path: str
    """`prefix`, `concatenation`, `packed`, or `model` for what happens before a way is taken."""
    what: str
    outcome: str
    """`right`, `refused`, `wrong` or `error`."""
    detail: str = ""
    """The error's own words, or what was wrong."""
    difference: float | None = None
    """The largest relative error."""


@dataclass(frozen=True)
class Finding:
    """What became of one model type."""

    model_type: str
    name: str
    """Of the class."""
    dtype: str
    checks: tuple[Check, ...]
    paths: tuple[str, ...]
    """The ways it takes by itself."""
    notes: tuple[str, ...]
    """What is done in another way than with most models."""

    @property
    def outcome(self) -> str:
        """The worst of the checks."""
        return next((worst for worst in ("error", "wrong", "refused") if self.having(worst)), "right")

    def having(self, outcome: str) -> list[Check]:
        """The checks with that outcome."""
        return [check for check in self.checks if check.outcome == outcome]


def sweep(model_type: str) -> Finding:
    """Every check of a small model of this type: in float64, or in float32 where transformers cannot do that."""
    base = small_decoder(model_type)
    if base._can_set_experts_implementation():
        base.set_experts_implementation("eager")  # PyTorch's grouped product takes no float64
    if model_type not in FLOAT32_ALONE:
        found = _sweep(base.double(), model_type, "float64")
        if found.checks[0].what != _BARE:
            return found
    return _sweep(base.float(), model_type, "float32")


def _sweep(base: PreTrainedModel, model_type: str, dtype: str) -> Finding:
    made = {"model_type": model_type, "name": type(base).__name__, "dtype": dtype}
    rows = [_draw(length, seed) for seed, length in enumerate(LENGTHS)]
    try:
        vectors = _virtual_tokens(base)
        reference = Reference(base, vectors, rows)
        mixed = Reference(base, vectors, rows, [SHORT, None, DEFAULT])
    except Exception as error:  # noqa: BLE001  # whatever the model's own code raises
        return Finding(**made, checks=(Check("model", _BARE, "error", _one_line(error)),), paths=(), notes=())
    if not all(bool(logits.isfinite().all()) for logits in reference.row_logits):
        return Finding(**made, checks=(Check("model", _BARE, "error", "NaN"),), paths=(), notes=())
    built: list[PTunedModel] = []
    checks = [_tried("model", "construction", lambda: built.append(_prompted(base, vectors)))]
    if not built:
        return Finding(**made, checks=tuple(checks), paths=(), notes=())
    model = built[0]
    for path in _paths(model):
        with taking(model, path):
            checks += _checks_of(model, path, reference, mixed)
    # Concatenation is tried with every model, and taken where there is nothing better.
    taken = tuple(path for path in _paths(model) if path != "concatenation" or not model.capability.prefix)
    return Finding(**made, checks=tuple(checks), paths=taken, notes=model.capability.notes)


_BARE = "the bare model"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _paths(model: PTunedModel) -> list[str]:
    paths = ["concatenation"]
    if model.capability.prefix:
        paths.append("prefix")
    if model.packs:
        paths.append("packed")
    return paths


@contextmanager
def taking(model: PTunedModel, path: str) -> Iterator[None]:
    """Only that way through the model."""
    before = model.capability, model.pack_batches
    if path == "concatenation" and before[0].prefix:
        model.capability = replace(before[0], prefix=False, left_padding=before[0].concat_padding)
    model.pack_batches = path == "packed"
    try:
        yield
    finally:
        model.capability, model.pack_batches = before


class Reference:
    """What the bare model says to prompt and text, one row alone, without padding and without a cache.

    Text goes in as token ids. The virtual tokens are put in place of what the embedding layer gives for the first `P`
    ids; where ids and their embeddings are the same to a model, it is given embeddings instead, as the plainest way.

    Args:
        base: The model.
        vectors: `(P, D)`.
        rows: `(T,)` each.
        names: The prompt of each row: `SHORT`, the first half of the vectors, or None; the whole one by default.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        vectors: torch.Tensor,
        rows: Sequence[torch.Tensor],
        names: Sequence[str | None] | None = None,
    ) -> None:
        self.base, self.vectors, self.rows, self.names = base, vectors, rows, names
        kinds = {DEFAULT: vectors, SHORT: vectors[: VIRTUAL // 2], None: vectors[:0]}
        self.fronts = [kinds[name] for name in names or [DEFAULT] * len(rows)]
        """`(P, D)` of each row."""
        known = inspect.signature(base.forward).parameters
        self._plain = {"use_cache": False} if "use_cache" in known else {}
        self.ids_matter = self._ids_matter()
        """Whether the model makes more of token ids than their embeddings."""
        pairs = list(zip(rows, self.fronts, strict=True))
        self.row_logits = [self._logits(row, front)[len(front) :] for row, front in pairs]
        """`(T, V)` of each row."""
        self.answers: dict[str, list[list[int]]] = {"greedy": [self._greedy(row, front) for row, front in pairs]}
        """New tokens of each row, up to the end token."""
        if names is None:
            self.loss, self.gradient = self._loss_and_gradient()
            self.answers["beams"] = [self._beams(row, front) for row, front in pairs]

    def _ids_matter(self) -> bool:
        row = self.rows[0][None]
        with torch.no_grad():
            wanted = self.base(input_ids=row, **self._plain).logits
            embeds = self.base.get_input_embeddings()(row) * 1.0001  # real virtual tokens are not in the table
            try:
                found = self.base(inputs_embeds=embeds, **self._plain).logits
            except Exception:  # noqa: BLE001  # whatever the model's own code raises
                return True
        return _error(found, wanted) > 0.05

    def _run(self, row: torch.Tensor, front: torch.Tensor) -> torch.Tensor:
        embed = self.base.get_input_embeddings()
        if not self.ids_matter:
            embeds = torch.cat([front, embed(row[None])[0].detach()])[None]
            return self.base(inputs_embeds=embeds, **self._plain).logits[0]
        with _in_place_of(embed, front):
            ids = torch.cat([torch.full((len(front),), PAD), row])[None]
            return self.base(input_ids=ids, **self._plain).logits[0]

    def _logits(self, row: torch.Tensor, front: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self._run(row, front)

    def _loss_and_gradient(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean over all tokens of all rows, and its gradient by the prompt's vectors, `(P, D)`."""
        vectors = self.vectors.detach().clone().requires_grad_()
        rows = [(self._run(row, vectors)[VIRTUAL - 1 : -1], row) for row in self.rows]
        loss = sum(F.cross_entropy(logits, row, reduction="sum") for logits, row in rows) / sum(LENGTHS)
        assert isinstance(loss, torch.Tensor)
        return loss.detach(), torch.autograd.grad(loss, vectors)[0]

    def _next(self, row: torch.Tensor, new: Sequence[int], front: torch.Tensor) -> torch.Tensor:
        """`(V,)` log-probabilities of the token after a row and new tokens."""
        return self._logits(torch.cat([row, torch.tensor(new, dtype=row.dtype)]), front)[-1].log_softmax(-1)

    def _greedy(self, row: torch.Tensor, front: torch.Tensor) -> list[int]:
        new: list[int] = []
        while len(new) < NEW and EOS not in new:
            new.append(int(self._next(row, new, front).argmax()))
        return new

    def _beams(self, row: torch.Tensor, front: torch.Tensor) -> list[int]:
        """Beam search by the book: three beams, the finished ones ranked by their mean log-probability a token."""
        alive: list[tuple[float, list[int]]] = [(0.0, [])]
        finished: list[tuple[float, list[int]]] = []
        for length in range(1, NEW + 1):
            options = []
            for score, new in alive:
                best = self._next(row, new, front).topk(2 * _BEAMS)
                options += [(score + float(v), [*new, int(t)]) for v, t in zip(best.values, best.indices, strict=True)]
            options.sort(key=lambda option: -option[0])
            alive = []
            for rank, (score, new) in enumerate(options[: 2 * _BEAMS]):
                if new[-1] == EOS and rank < _BEAMS:
                    finished.append((score / length, new))
                elif new[-1] != EOS and len(alive) < _BEAMS:
                    alive.append((score, new))
            finished = sorted(finished, key=lambda one: -one[0])[:_BEAMS]
        finished += [(score / NEW, new) for score, new in alive]
        return max(finished, key=lambda one: one[0])[1]


@contextmanager
def _in_place_of(embed: torch.nn.Module, vectors: torch.Tensor) -> Iterator[None]:
    """The embedding layer gives these `(P, D)` vectors for the first `P` ids."""

    def hook(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([vectors[None], output[:, len(vectors) :]], dim=1)

    handle = embed.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


_BEAMS = 3
_WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "beams": {"num_beams": _BEAMS}}
_GENERATE = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD, "eos_token_id": EOS}


def _checks_of(model: PTunedModel, path: str, reference: Reference, mixed: Reference) -> Iterator[Check]:
    rows = reference.rows
    packed = path == "packed"
    for side in (None,) if packed else ("right", "left"):
        batch, where = (_packed(rows), "") if side is None else (_padded(rows, side), f", padded {side}")
        yield _tried(path, f"forward{where}", partial(_forward, model, reference, batch))
        yield _tried(path, f"gradient{where}", partial(_gradient, model, reference, batch))
        yield _tried(path, f"forward, a prompt a row{where}", partial(_forward, model, mixed, batch))
        if not packed:
            for name in _WAYS:
                yield _tried(path, f"{name}{where}", partial(_generation, model, reference, batch, name))
            yield _tried(path, f"greedy, a prompt a row{where}", partial(_generation, model, mixed, batch, "greedy"))


def _tried(path: str, what: str, work: Callable[[], Any]) -> Check:
    """Run a check; it gives its largest relative error, or a text that says what was wrong."""
    try:
        found = work()
    except PTuneError as error:
        return Check(path, what, "refused", str(error))
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what a user would see
        return Check(path, what, "error", _one_line(error))
    if isinstance(found, float):
        outcome = "right" if found < TOLERANCE else "wrong"
        return Check(path, what, outcome, "" if outcome == "right" else f"off by {found:.1e}", found)
    return Check(path, what, "wrong" if found else "right", found or "")


def _forward(model: PTunedModel, reference: Reference, batch: dict[str, Any]) -> float:
    with torch.no_grad():
        output = model(**batch, prompt_names=reference.names, return_logits=True)
    if "row_lengths" in batch:
        found = list(torch.split(output.logits[0], list(LENGTHS)))
    else:
        found = [output.logits[at][batch["attention_mask"][at].bool()] for at in range(len(LENGTHS))]
    errors = [_error(mine, wanted) for mine, wanted in zip(found, reference.row_logits, strict=True)]
    return _largest([*errors, 0.0 if reference.names else _error(output.loss, reference.loss)])


def _gradient(model: PTunedModel, reference: Reference, batch: dict[str, Any]) -> float:
    weight = model.prompts[DEFAULT].embedding.weight
    weight.grad = None
    weight.requires_grad_(True)
    model.train()  # without dropout of any kind the same model
    loss = model(**batch, return_logits=False).loss
    loss.backward()
    model.eval()
    assert weight.grad is not None, "no gradient reaches the prompt"
    return _largest([_error(weight.grad, reference.gradient), _error(loss, reference.loss)])


def _generation(model: PTunedModel, reference: Reference, batch: dict[str, Any], name: str) -> str:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    out = model.generate(ids, attention_mask=mask, prompt_names=reference.names, **_GENERATE, **_WAYS[name])
    for at, wanted in enumerate(reference.answers[name]):
        found = _until_end(out[at, ids.shape[1] :].tolist())
        if found != wanted:
            return f"row {at}: {found}, not {wanted}"
    return ""


def _prompted(base: PreTrainedModel, vectors: torch.Tensor) -> PTunedModel:
    model = PTunedModel(base)
    for name, own in ((DEFAULT, vectors), (SHORT, vectors[: VIRTUAL // 2])):
        model.add_prompt(name, PromptTuningConfig(num_virtual_tokens=len(own)))
        model.prompts[name].to(own.dtype).embedding.weight.data.copy_(own)
    return model.eval()


def _virtual_tokens(base: PreTrainedModel) -> torch.Tensor:
    """`(P, D)`: between real tokens' embeddings, and none of them."""
    with torch.no_grad():
        embed = base.get_input_embeddings()
        first, second = (embed(_draw(VIRTUAL, seed)[None])[0] for seed in (7, 8))
        return 0.7 * first + 0.3 * second


def _draw(length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(_FIRST_ORDINARY, _LAST_ORDINARY, (length,), generator=generator)


def _padded(rows: Sequence[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    width = max(LENGTHS)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[at, place], mask[at, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def _packed(rows: Sequence[torch.Tensor]) -> dict[str, Any]:
    return PackingCollator()([{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows])


def _until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def _largest(errors: Sequence[float]) -> float:
    """The largest of them; NaN counts as infinite."""
    return max(float("inf") if error != error else error for error in errors)
