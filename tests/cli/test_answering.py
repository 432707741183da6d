"""`ptune generate` and `ptune chat` on a trained prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from architectures import build
from commands import run
from ptune.cli.main import main

NEW = ("--max-new-tokens", 6)


def answer_by_hand(model_dir: Path, prompt_dir: Path | None, text: str, new_tokens: int = 6) -> str:
    """Greedy tokens, one forward pass each over embeddings put together by hand."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = LlamaForCausalLM.from_pretrained(model_dir)
    ids = tokenizer(f"Human: {text}\n\nAssistant: ")["input_ids"]
    table = model.get_input_embeddings().weight
    start = table[:0]
    if prompt_dir is not None:
        start = load_file(prompt_dir / "adapter_model.safetensors")["prompt_embeddings"]
    new: list[int] = []
    with torch.no_grad():
        while len(new) < new_tokens and (not new or new[-1] != tokenizer.eos_token_id):
            embeds = torch.cat([start, table[torch.tensor(ids + new)]]).unsqueeze(0)
            new.append(int(model(inputs_embeds=embeds).logits[0, -1].argmax()))
    return str(tokenizer.decode(new, skip_special_tokens=True))


def test_generate_gives_the_tuned_answer(prompt_dir: Path, tiny_model_dir: Path):
    ran = run("generate", prompt_dir, "green red", *NEW)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == answer_by_hand(tiny_model_dir, prompt_dir, "green red") + "\n"


def test_generate_on_a_model_that_is_spread(prompt_dir: Path, tiny_model_dir: Path):
    ran = run("generate", prompt_dir, "green red", *NEW, "--device-map", "auto", "--attn-implementation", "eager")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == answer_by_hand(tiny_model_dir, prompt_dir, "green red") + "\n"


def test_generate_without_the_prompt(prompt_dir: Path, tiny_model_dir: Path):
    # The text may stand behind a flag: argparse alone would not find it there.
    ran = run("generate", prompt_dir, "--no-prompt", "green red", *NEW)
    assert ran.out == answer_by_hand(tiny_model_dir, None, "green red") + "\n"


def test_generate_compares(prompt_dir: Path, tiny_model_dir: Path):
    tuned, base = (answer_by_hand(tiny_model_dir, folder, "green") for folder in (prompt_dir, None))
    assert tuned != base
    assert run("generate", "--compare", prompt_dir, "green", *NEW).out == f"tuned: {tuned}\nbase: {base}\n"
    both = json.loads(run("generate", prompt_dir, "green", "--compare", "--json", *NEW).out)
    assert both == {"text": "green", "input": "", "tuned": tuned, "base": base}


def test_generate_reads_standard_input_and_takes_an_input(prompt_dir: Path, tiny_model_dir: Path):
    for words in ([], ["-"]):
        ran = run("generate", prompt_dir, *words, "--json", "--input", "blue", *NEW, stdin="green\n")
        answer = json.loads(ran.out)
        assert answer == {"text": "green", "input": "blue", "tuned": answer["tuned"]}
        assert answer["tuned"] == answer_by_hand(tiny_model_dir, prompt_dir, "green\nblue")


def test_sampling_is_repeatable(prompt_dir: Path):
    def sample(seed: int) -> str:
        return run("generate", prompt_dir, "green", "--temperature", 1.5, "--seed", seed, "--max-new-tokens", 20).out

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_default_length_keeps_within_the_context(prompt_dir: Path):
    # 128 new tokens are the default, more than the small model's context of 128 has room for.
    ran = run("generate", prompt_dir, "green")
    assert (ran.code, ran.err) == (0, "")


def test_checkpoint_is_a_prompt_folder(prompt_dir: Path):
    assert (
        run("generate", prompt_dir / "checkpoint-2", "green", *NEW).out
        == run("generate", prompt_dir, "green", *NEW).out
    )


def chat(prompt_dir: Path, lines: str, *flags: object) -> list[str]:
    ran = run("chat", prompt_dir, *NEW, *flags, stdin=lines)
    assert (ran.code, ran.err) == (0, "")
    return ran.out.splitlines()


def test_chat_answers_each_line(prompt_dir: Path, tiny_model_dir: Path):
    lines = chat(prompt_dir, "green\n\nblue\n")
    assert lines == [f"tuned> {answer_by_hand(tiny_model_dir, prompt_dir, word)}" for word in ("green", "blue")]


def test_chat_commands(prompt_dir: Path, tiny_model_dir: Path):
    tuned, base = (answer_by_hand(tiny_model_dir, folder, "green") for folder in (prompt_dir, None))
    lines = chat(prompt_dir, "/base\ngreen\n/base\ngreen\n/help\n/exit\nblue\n")
    assert lines[:5] == [
        "(the frozen model's answer is shown)",
        f"tuned> {tuned}",
        f"base> {base}",
        "(the frozen model's answer is hidden)",
        f"tuned> {tuned}",
    ]
    assert "/reset" in lines[5]
    assert len(lines) == 6


def test_chat_history_and_reset(prompt_dir: Path, tiny_model_dir: Path):
    first = answer_by_hand(tiny_model_dir, prompt_dir, "green")
    with_history = f"green\n\nAssistant: {first}<eos>\n\nHuman: blue"
    lines = chat(prompt_dir, "green\nblue\n/reset\nblue\n", "--history")
    assert lines[1] == f"tuned> {answer_by_hand(tiny_model_dir, prompt_dir, with_history)}"
    assert lines[2:] == ["(forgotten)", f"tuned> {answer_by_hand(tiny_model_dir, prompt_dir, 'blue')}"]
    assert lines[1] != lines[3]


def test_chat_forgets_the_oldest_turns_when_the_context_is_full(prompt_dir: Path):
    lines = chat(prompt_dir, "green green green\n" * 12, "--history")
    assert len(lines) == 12
    assert all(line.startswith("tuned> ") for line in lines)


def test_chat_goes_on_after_a_text_that_is_too_long(prompt_dir: Path):
    lines = chat(prompt_dir, "x" * 300 + "\ngreen\n")
    assert lines[0].startswith("(the prompt and the ")
    assert lines[1].startswith("tuned> ")


def test_chat_without_the_prompt_and_with_beams(prompt_dir: Path, tiny_model_dir: Path):
    assert chat(prompt_dir, "green\n", "--no-prompt") == [f"base> {answer_by_hand(tiny_model_dir, None, 'green')}"]
    assert chat(prompt_dir, "green\n", "--num-beams", 2)[0].startswith("tuned> ")


def test_generate_from_a_folder_that_peft_made(tmp_path: Path, tiny_model_dir: Path):
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(build("llama"), config).save_pretrained(tmp_path)
    ran = run("generate", tmp_path, "green", "--model", tiny_model_dir, *NEW)
    assert ran.out == answer_by_hand(tiny_model_dir, tmp_path, "green") + "\n"
    assert "does not name its base model" in run("generate", tmp_path, "green").err


def test_closed_pipe_is_no_error(prompt_dir: Path, monkeypatch: pytest.MonkeyPatch):
    class Closed:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

        def isatty(self) -> bool:
            return False

        def fileno(self) -> int:
            return 1

    monkeypatch.setattr("os.dup2", lambda source, target: None)
    monkeypatch.setattr("sys.stdout", Closed())
    assert main(["inspect", str(prompt_dir), "--json"]) == 0


def test_a_model_named_from_here_is_found_from_elsewhere(
    tiny_model_dir: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").symlink_to(tiny_model_dir)
    monkeypatch.chdir(tmp_path / "here")
    done = run(
        "train", "--model", "../model", "--data", data_file, "--output", "../prompt", "--max-steps", 1,
        "--num-virtual-tokens", 2,
    )  # fmt: skip
    assert done.code == 0, done.err
    monkeypatch.chdir(tmp_path / "elsewhere")
    ran = run("generate", "../prompt", "green", "--max-new-tokens", 2)
    assert ran.code == 0, ran.err
