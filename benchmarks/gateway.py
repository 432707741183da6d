"""Does `ptune serve --upstream` in front of vLLM give ptune's answers, and does it lose none when a server dies?

    python benchmarks/gateway.py TICKETS QUESTIONS --work FOLDER --vllm-python PYTHON [--threads 1]

The prompts, texts and reference of `engines.py`, which runs first with the same `--work`; vLLM in float32, from an
environment of its own. 50 texts behind each prompt and 50 for the frozen model alone, mixed, 16 at a time, greedy.

- *tokens*: two vLLM servers of the exported model, as they come, and the gateway.
- *killed*: the same once more, and one of the servers gets SIGKILL when a quarter is answered.
- *embeddings*: one vLLM server of the untouched model with `--enable-prompt-embeds`, and the gateway with the prompts.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer

from engines import ALONE, AT_ONCE, NEW_TOKENS, QUESTIONS, TICKETS, rows, vllm_server
from harness import RESULTS, ROOT, heading, write
from served import Served, chat, load

WHAT = "ptune serve --upstream in front of vLLM: answers beside ptune generate, and what a killed server costs."
BASE = "base"


class Answers:
    """What is asked, and what is right.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        known = json.loads((options.work / "reference.json").read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(options.work / "untouched")
        self.asked = [(task, text) for task, text, *_ in rows(options.data, options.rows)]
        self.right = [tokenizer.decode(ids, skip_special_tokens=True) for ids in known["answers"]]

    def compared(self, gateway: Served, after: Callable[[int], None] = lambda _done: None) -> dict[str, Any]:
        """Ask all of it; of each task how many answers are equal."""
        bodies = [chat(BASE if task == ALONE else task, text, NEW_TOKENS[task]) for task, text in self.asked]
        seconds, answers, _ = load(gateway, bodies, AT_ONCE, after)
        found: dict[str, Any] = {"seconds": seconds, "different": []}
        for (task, text), right, answer in zip(self.asked, self.right, answers, strict=True):
            said = answer["choices"][0]["message"]["content"]
            mine = found.setdefault(task, {"asked": 0, "equal": 0})
            mine["asked"] += 1
            mine["equal"] += said == right
            if said != right:
                found["different"].append({"task": task, "text": text, "ptune": right, "gateway": said})
        return found


def with_tokens(options: argparse.Namespace, answers: Answers) -> dict[str, Any]:
    """Two servers of the exported model; then one of them is killed."""
    model = options.work / "model"
    servers = [vllm_server(options, model, "float32", name=f"gateway_{number}") for number in range(2)]
    with servers[0] as staying, servers[1] as dying:
        flags = ["--model", model, "--served-model-name", BASE, "--upstream", staying.url, dying.url]
        with Served(*flags, threads=1, dtype=None) as gateway:
            memory = {"start_seconds": gateway.start_seconds, "resident_mib": gateway.resident_mib}
            calm = answers.compared(gateway)

            def kill(done: int) -> None:
                if done == len(answers.asked) // 4:
                    server = psutil.Process(dying.process.pid)
                    for one in [server, *server.children(recursive=True)]:
                        one.kill()

            killed = answers.compared(gateway, kill)
            lost = [one["reason"] for one in gateway.log if one["message"] == "an upstream did not answer"]
    return {
        "gateway": memory,
        "tokens": calm,
        "killed": {**killed, "asked_again": len(lost), "reasons": sorted(set(lost))},
    }


def with_embeddings(options: argparse.Namespace, answers: Answers) -> dict[str, Any]:
    """One server of the untouched model, which is sent embeddings."""
    model = options.work / "untouched"
    prompts: Sequence[str] = [f"{TICKETS}={options.tickets}", f"{QUESTIONS}={options.questions}"]
    with vllm_server(options, model, "float32", "--enable-prompt-embeds", name="embeddings") as server:
        flags = ["--model", model, "--served-model-name", BASE, "--upstream", server.url, "--prompts", *prompts]
        with Served(*flags, threads=1, dtype=None) as gateway:
            found = answers.compared(gateway)
            return {"embeddings": {**found, "gateway_resident_mib": gateway.resident_mib}}


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("tickets", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, required=True, help="of engines.py")
    parser.add_argument("--vllm-python", type=Path, required=True, help="Python of an environment with vLLM")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each vLLM server")
    parser.add_argument("--output", type=Path, default=RESULTS / "gateway.json")
    options = parser.parse_args()
    command = "python benchmarks/gateway.py TICKETS QUESTIONS --work FOLDER --vllm-python …"
    result = heading(WHAT, command)
    answers = Answers(options)
    for part in (with_tokens, with_embeddings):
        result |= part(options, answers)
        write(result, options.output)
    for name in ("gateway", "tokens", "killed", "embeddings"):
        print(name, json.dumps({key: value for key, value in result[name].items() if key != "different"}, indent=1))


if __name__ == "__main__":
    main()
