"""ptune as a model of lm-evaluation-harness: `python -m ptune.lm_eval --model ptune --model_args prompt=DIR …`.

lm_eval (0.4) finds the models of others by being told of them before it runs: it has no entry point for them. So this
module registers `ptune` and then is lm_eval's own command line; for `lm_eval.simple_evaluate(model="ptune", …)` import
it first.

Context and continuation are tokenized apart, as question and answer are in training, where lm_eval's own models move
blanks at a context's end to the continuation. With `--apply_chat_template` contexts are written by the template that
the prompt was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from ptune.answering import Answerer
from ptune.data.labels import IGNORE_INDEX
from ptune.data.template import get_template
from ptune.data.text_ids import ids_of, leading_special_ids
from ptune.errors import ConfigError
from ptune.evaluation.answers import generate_answers
from ptune.evaluation.label_likelihood import AskedText, LabelSet, label_likelihoods
from ptune.evaluation.row_losses import LearnedRow, row_losses
from ptune.loading.load import check_tokenizer, load_model, load_tokenizer
from ptune.model.wrapper import PTunedModel

_BATCH = 16
_MOST_NAMES, _MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"), 256
"""What tasks call the longest answer, and how long it is where they do not say."""
_LONGEST = 2048
"""Tokens of a window where the model's context has no limit."""


@register_model("ptune")
class PTuneLM(LM):  # type: ignore[misc]  # lm_eval has no types
    """A frozen model behind a prompt, or alone.

    Args:
        prompt: The prompt folder, or its hub id; without it the model answers alone.
        model: The frozen model; by default the one that the prompt was trained on.
        template: What `--apply_chat_template` writes by; by default the one that the prompt was trained with.
        batch_size: Rows a batch, of answers alone: likelihoods are packed up to a number of tokens.
        options: As for `Answerer.open`: `dtype`, `quantization`, `device`, `revision`, `force`, `self_check`,
            `trust_remote_code`.

    Raises:
        ConfigError: Neither a prompt nor a model is named, or an argument is not known.
        PTuneError: As for `Answerer.open`.
    """

    def __init__(
        self,
        prompt: str | None = None,
        model: str | None = None,
        template: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,  # noqa: ARG002 (lm_eval gives it to every model)
        **options: Any,
    ) -> None:
        super().__init__()
        if str(options.get("device")).startswith("cuda") and not torch.cuda.is_available():
            options["device"] = None  # what lm_eval says where nobody said anything
        if prompt is None and model is None:
            raise ConfigError("lm_eval names no prompt.", hint="Pass --model_args prompt=DIR (or model=NAME alone).")
        opened = _bare(model, template, **options) if prompt is None else None
        self._answerer = opened or Answerer.open(str(prompt), model=model, template=template, **options)
        self.model, self.tokenizer = self._answerer.model, self._answerer.tokenizer
        self._name = self.model.active_prompt
        self._leading = leading_special_ids(self.tokenizer)
        self._batch_size = batch_size if isinstance(batch_size, int) else _BATCH
        width = 0 if self._name is None else self.model.prompt_configs[self._name].num_virtual_tokens
        limit = self.model.context_length
        self.max_length = _LONGEST if limit is None else limit - width
        """Tokens of a text that have room in the context behind the prompt."""

    # ---- likelihoods -------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding would write it) of each (context, continuation)."""
        together: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            together.setdefault(request.args[0], []).append(number)
        order = sorted(together, key=len)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc="loglikelihood", disable=disable_tqdm) as bar:
            for start in range(0, len(order), _BATCH):
                contexts = order[start : start + _BATCH]
                asked = [
                    self._asked(context, [requests[number].args[1] for number in together[context]])
                    for context in contexts
                ]
                for context, likely in zip(contexts, label_likelihoods(self.model, asked), strict=True):
                    for number, one in zip(together[context], likely, strict=True):
                        found[number] = (one.log_prob, one.greedy)
                        self.cache_hook.add_partial("loglikelihood", requests[number].args, found[number])
                    bar.update(len(likely))
        return found

    def _asked(self, context: str, continuations: Sequence[str]) -> AskedText:
        labels = LabelSet.of(ids_of(list(continuations), self.tokenizer))
        room = self.max_length - max(map(len, labels.labels))
        return AskedText(self._ids(context)[-room:], self._name, labels)

    def _ids(self, context: str) -> list[int]:
        """Token ids of a context; an empty one is the token that texts begin with, or else end with."""
        bos = self.tokenizer.bos_token
        leading = [] if bos and context.startswith(bos) else self._leading
        return [*leading, *ids_of([context], self.tokenizer)[0]] or [int(self.tokenizer.eos_token_id)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, long ones in windows, each token predicted once.

        The prompt predicts a text's first token. Without one it is predicted as in lm_eval's other models: behind the
        token that texts begin with, or else end with.
        """
        before = self._leading or ([] if self._name is not None else [int(self.tokenizer.eos_token_id)])
        totals = []
        with tqdm(total=len(requests), desc="loglikelihood_rolling", disable=disable_tqdm) as bar:
            for request in requests:
                (text,) = request.args
                rows = [self._window(pair, before) for pair in self._windows(ids_of([text], self.tokenizer)[0])]
                totals.append(-sum(one.total for one in row_losses(self.model, rows)) if rows else 0.0)
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
                bar.update()
        return totals

    def _windows(self, ids: list[int]) -> list[tuple[list[int], list[int]]]:
        """What is given and what is predicted of a text, window after window; the first is given a mark alone."""
        most = self.max_length - max(len(self._leading), 1)
        windows = utils.get_rolling_token_windows(ids, prefix_token=-1, max_seq_len=most, context_len=1)
        return [utils.make_disjoint_window(pair) for pair in windows]

    def _window(self, pair: tuple[list[int], list[int]], before: list[int]) -> LearnedRow:
        given, predicted = pair
        given = before if given == [-1] else given
        return LearnedRow([*given, *predicted], [*[IGNORE_INDEX] * len(given), *predicted], self._name)

    # ---- answers -----------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each (context, options), up to the first stop sequence."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(number)
        found = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for numbers in alike.values():
                stops, most, options = _limits(requests[numbers[0]].args[1])
                room = max(self.max_length - most, 1)
                for start in range(0, len(numbers), self._batch_size):
                    batch = numbers[start : start + self._batch_size]
                    answers = generate_answers(
                        self.model,
                        self.tokenizer,
                        [self._ids(requests[number].args[0])[-room:] for number in batch],
                        prompt_names=[self._name] * len(batch),
                        max_new_tokens=min(most, self.max_length - 1),
                        **options,
                    )
                    for number, answer in zip(batch, answers, strict=True):
                        found[number] = _before(answer, stops)
                        self.cache_hook.add_partial("generate_until", requests[number].args, found[number])
                    bar.update(len(batch))
        return found

    # ---- chats -------------------------------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the prompt's template writes it, up to the answer; or with the beginning of one."""
        turns = [(one["role"], one["content"]) for one in chat_history]
        system = "\n\n".join(content for role, content in turns if role == "system") or None
        turns = [turn for turn in turns if turn[0] != "system"]
        begun = "" if add_generation_prompt else turns.pop()[1]
        *history, (_, question) = turns
        return self._answerer.template.prompt(question, history=history, system=system).prompt + begun

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text, for lm_eval's records."""
        return self._answerer.template.text if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """What tells cached requests of different tokenizers and templates apart."""
        return f"{self.tokenizer.name_or_path}--{self._answerer.template.fingerprint[:16]}".replace("/", "__")


def _bare(model: str | None, template: str | None, **options: Any) -> Answerer:
    """The frozen model alone."""
    name, options = str(model), dict(options)
    shared = {key: options.pop(key) for key in ("revision", "trust_remote_code") if key in options}
    self_check = bool(options.pop("self_check", True))
    unknown_options = set(options) - {"dtype", "quantization", "device"}
    if unknown_options:
        raise ConfigError(f"model_args: {', '.join(sorted(unknown_options))}: not known without a prompt.")
    tokenizer, base = load_tokenizer(name, **shared), load_model(name, **shared, **options)
    check_tokenizer(base, tokenizer)
    prompted = PTunedModel(base, self_check=self_check).eval()
    return Answerer(prompted, tokenizer, get_template(template or "tutorial", tokenizer))


def _before(answer: str, stops: Sequence[str]) -> str:
    """What stands before the first stop sequence."""
    for stop in stops:
        answer = answer.split(stop, maxsplit=1)[0]
    return answer


def _limits(asked: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """Stop sequences, tokens of the longest answer, and what else `generate` is told; greedy unless it is to sample."""
    options = dict(asked)
    until = options.pop("until", None) or []
    most = [options.pop(name) for name in _MOST_NAMES if name in options]
    sample = options.pop("do_sample", bool(options.get("temperature")))
    stops = list(filter(None, [until] if isinstance(until, str) else until))
    told = {"do_sample": True, **options} if sample else {}
    return stops, int(most[0]) if most else _MOST_TOKENS, {**told, "stop_strings": stops} if stops else told


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
