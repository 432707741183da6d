"""What does `ptune serve` do under load: speed, equality, memory, many prompts, faults?

    python benchmarks/serving.py [--threads 2] [--rounds 3] [--only throughput] [--small]

The server is a process of its own, `ptune serve` on SmolLM2-135M in float32 unless said otherwise, and is asked over
HTTP by clients that send their next request when they have their answer.

- *throughput*: 128 requests of 32 new tokens by 64 clients, over 32 prompts of 10 to 40 virtual tokens; the same with
  one prompt; and one request after another. In turn, round after round.
- *equality*: 64 clients with 32 prompts at once, answers of up to 32 tokens at temperature 0, each compared with what
  `Answerer.answer`, which is `ptune generate`, says.
- *many*: 1,000 prompts of 10 virtual tokens registered, and one: start, memory, and the latency of 8 clients.
- *memory*: 10,000 requests of 16 clients to a small random model; resident memory on the way.
- *faults*: what happens (`serving_faults.py`).
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT, heading, spread, write
from served import MIB, REAL, Served, chat, load, make_prompts, percentile, texts, tiny_model
from serving_faults import try_faults

WHAT = (
    "ptune serve under load: throughput of mixed prompts against one prompt and against one request after another, "
    "equality with ptune generate, 1,000 prompts, memory after 10,000 requests, and what faults do."
)
LENGTHS = (10, 20, 30, 40)


def throughput(options: argparse.Namespace, at: Path) -> dict[str, Any]:
    """Tokens a second: 32 prompts mixed, one prompt, one request after another."""
    root = make_prompts(REAL, at / "prompts", 32, lengths=LENGTHS)
    count, tokens = (64, 16) if options.small else (128, 32)
    messages = texts(count)

    def bodies(pick: Callable[[int], int], many: int) -> list[dict[str, Any]]:
        return [chat(f"p{pick(n)}", messages[n], tokens, ignore_eos=True) for n in range(many)]

    # The one prompt is one of middle length, 25 virtual tokens being the mean of the 32.
    kinds = {
        "mixed": (bodies(lambda n: n % 32, count), 64),
        "one_prompt": (bodies(lambda _n: 1, count), 64),
        "one_after_another": (bodies(lambda n: n % 32, count // 8), 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    with Served("--model", REAL, "--prompts-root", root, threads=options.threads) as server:
        load(server, kinds["mixed"][0], 64)  # warm: every prefix is kept from here on
        for _ in range(options.rounds):
            for name, (asked, clients) in kinds.items():
                seconds, answers, _ = load(server, asked, clients)
                written = sum(one["usage"]["completion_tokens"] for one in answers)
                rates[name].append(written / seconds)
    pairs = {
        "mixed_over_one_prompt": [a / b for a, b in zip(rates["mixed"], rates["one_prompt"], strict=True)],
        "mixed_over_one_after_another": [
            a / b for a, b in zip(rates["mixed"], rates["one_after_another"], strict=True)
        ],
    }
    return {
        "requests": count,
        "new_tokens": tokens,
        "clients": 64,
        "prompts": 32,
        "tokens_per_second": {name: {**spread(found), "rounds": found} for name, found in rates.items()},
        "ratios": {name: {**spread(found), "rounds": found} for name, found in pairs.items()},
    }


def equality(options: argparse.Namespace, at: Path) -> dict[str, Any]:
    """How many of the answers to 64 clients with 32 prompts are those of `ptune generate`."""
    from ptune.answering import Answerer

    root = make_prompts(REAL, at / "prompts", 32, lengths=LENGTHS)
    count = 64 if options.small else 128
    messages = texts(count, seed=1)
    asked = [(f"p{n % 32}", messages[n], 8 + n % 25) for n in range(count)]
    with Served("--model", REAL, "--prompts-root", root, "--max-concurrency", 64, threads=options.threads) as server:
        _, answers, _ = load(server, [chat(*one) for one in asked], 64)
    answerer = Answerer.open(root / "p0", model=REAL, dtype="float32")
    for number in range(1, 32):
        answerer.model.load_prompt(root / f"p{number}", name=f"p{number}", trainable=False)
    different = []
    for (name, text, tokens), answer in zip(asked, answers, strict=True):
        answerer.model.set_prompt("default" if name == "p0" else name)
        wanted = answerer.answer(text, max_new_tokens=tokens)
        if answer["choices"][0]["message"]["content"] != wanted:
            different.append({"prompt": name, "text": text, "tokens": tokens, "wanted": wanted, "answer": answer})
    return {"clients": 64, "prompts": 32, "answers": count, "equal": count - len(different), "different": different}


def many(options: argparse.Namespace, at: Path) -> dict[str, Any]:
    """1,000 prompts registered, beside one: start, memory, latency."""
    count, asked, tokens = (200, 64, 8) if options.small else (1000, 400, 16)
    root = make_prompts(REAL, at / "prompts", count, lengths=(10,))
    draw, found = random.Random(0), {}
    for number in (1, count):
        folders = ["--prompts", root / "p0"] if number == 1 else ["--prompts-root", root]
        bodies = [
            chat(f"p{draw.randrange(number)}", text, tokens, ignore_eos=True) for text in texts(asked, seed=number)
        ]
        with Served("--model", REAL, *folders, threads=options.threads) as server:
            at_start = server.resident_mib
            load(server, bodies[:16], 8)
            _, _, seconds = load(server, bodies, 8)
            with server.http() as http:
                lines = http.get("/metrics").text.splitlines()
            kept = next(float(line.split()[1]) for line in lines if line.startswith("ptune_kept_prefixes_bytes "))
            found[str(number)] = {
                "start_seconds": server.start_seconds,
                "resident_mib_at_start": at_start,
                "resident_mib_after": server.resident_mib,
                "kept_prefixes_mib": kept / MIB,
                "latency_seconds": {
                    "p50": percentile(seconds, 0.5),
                    "p99": percentile(seconds, 0.99),
                    "mean": statistics.mean(seconds),
                },
            }
    return {"requests": asked, "new_tokens": tokens, "clients": 8, "registered": found}


def memory(options: argparse.Namespace, at: Path) -> dict[str, Any]:
    """Resident memory while 10,000 requests are answered by a small model."""
    model = tiny_model(at / "model")
    root = make_prompts(model, at / "prompts", 32, lengths=LENGTHS)
    count, step = (2000, 250) if options.small else (10_000, 500)
    messages, draw = texts(256), random.Random(0)
    bodies = [
        chat(f"p{draw.randrange(32)}", draw.choice(messages), draw.randrange(1, 13), stream=False) for _ in range(count)
    ]
    taken: dict[str, float] = {}
    with Served("--model", model, "--prompts-root", root, threads=options.threads) as server:
        taken["0"] = server.resident_mib

        def note(done: int) -> None:
            if done % step == 0:
                taken[str(done)] = server.resident_mib

        seconds, _, _ = load(server, bodies, 16, note)
    quarter = taken[str(count // 4)]
    return {
        "requests": count,
        "clients": 16,
        "seconds": seconds,
        "resident_mib": taken,
        "growth_mib_in_the_last_three_quarters": taken[str(count)] - quarter,
    }


def faults(options: argparse.Namespace, at: Path) -> dict[str, Any]:
    """The table of faults."""
    model = tiny_model(at / "model")
    root = make_prompts(model, at / "prompts", 4, lengths=LENGTHS)
    found = try_faults(model, root, at, threads=options.threads)
    return {"tried": len(found), "as_wanted": sum(one["as_wanted"] for one in found), "faults": found}


PARTS = {"throughput": throughput, "equality": equality, "many": many, "memory": memory, "faults": faults}


def main() -> None:
    """Run the parts and write the result after each."""
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("--threads", type=int, default=2, help="of the server (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="of the throughput (default 3)")
    parser.add_argument("--only", nargs="+", choices=[*PARTS], help="these parts alone; the others stay as they are")
    parser.add_argument("--small", action="store_true", help="smaller loads, for a first look")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.json")
    options = parser.parse_args()
    command = shlex.join(["python", "benchmarks/serving.py", *sys.argv[1:]]).replace(f"{ROOT}/", "")
    before = json.loads(options.output.read_text(encoding="utf-8")) if options.only and options.output.exists() else {}
    result = {**before, **heading(WHAT, command), "threads": options.threads}
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = {**PARTS[name](options, Path(folder)), "command": command}
        write(result, options.output)
        brief = {key: value for key, value in result[name].items() if key not in ("different", "faults")}
        print(name, json.dumps(brief, indent=1), flush=True)


if __name__ == "__main__":
    main()
