"""P-tuning step by step, with a plain `transformers.Trainer`.

This is the script people write for PEFT, with `peft` replaced by `ptune`; nothing else in it knows about ptune. It
tunes a soft prompt for a Chinese BLOOM on Alpaca rows. Fetch the model and the data first, or name your own:

    python examples/tutorial.py --model bloom-1b4-zh/ --data alpaca_data_zh/ --output-dir "./p tuning"
    python examples/tutorial.py --encoder lstm --encoder-hidden-size 1024

`--data` is a folder written by `datasets.Dataset.save_to_disk` with the columns instruction, input and output. For new
work there is `ptune train`, which also reports the rows it drops and measures the result.
"""

from __future__ import annotations

import argparse
from typing import Any

# Step 1: the tools.
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from ptune import PromptEncoderConfig, PromptEncoderReparameterizationType, TaskType, get_peft_model


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    # Step 2: the rows, as Arrow files on disk.
    dataset = Dataset.load_from_disk(options.data)

    # Step 3: text to token ids. The label -100 keeps the instruction out of the loss.
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def process_func(example: dict[str, str], max_length: int = 256) -> dict[str, list[int]]:
        question = "\n".join(["Human: " + example["instruction"], example["input"]]).strip() + "\n\nAssistant: "
        instruction = tokenizer(question)
        response = tokenizer(example["output"] + tokenizer.eos_token)
        input_ids = instruction["input_ids"] + response["input_ids"]
        attention_mask = instruction["attention_mask"] + response["attention_mask"]
        labels = [-100] * len(instruction["input_ids"]) + response["input_ids"]
        return {
            "input_ids": input_ids[:max_length],
            "attention_mask": attention_mask[:max_length],
            "labels": labels[:max_length],
        }

    tokenized_dataset = dataset.map(process_func, remove_columns=dataset.column_names)

    # Step 4: the model. It stays frozen from here on.
    model = AutoModelForCausalLM.from_pretrained(options.model)

    # P-tuning, step 1: what the prompt encoder is to be. MLP is the default; the other values are for either kind.
    config = PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=options.num_virtual_tokens,
        encoder_reparameterization_type=PromptEncoderReparameterizationType(options.encoder.upper()),
        encoder_dropout=options.encoder_dropout,
        encoder_num_layers=options.encoder_num_layers,
        encoder_hidden_size=options.encoder_hidden_size,
    )

    # P-tuning, step 2: the model with its soft prompt.
    model = get_peft_model(model, config)
    model.print_trainable_parameters()

    # Step 5: how to train.
    args = TrainingArguments(
        output_dir=options.output_dir,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        logging_steps=10,
        num_train_epochs=1,
        **chosen(options),
    )

    # Step 6: the trainer. The collator pads ids and labels alike.
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=tokenized_dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
    )

    # Step 7: watch the loss fall.
    trainer.train()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="P-tuning step by step, with a plain transformers.Trainer.")
    parser.add_argument("--model", default="bloom-1b4-zh/", help="folder or hub id of a causal language model")
    parser.add_argument("--data", default="alpaca_data_zh/", help="Arrow folder with instruction, input and output")
    parser.add_argument("--output-dir", default="./p tuning", help="where checkpoints go")
    parser.add_argument("--num-virtual-tokens", type=int, default=10)
    parser.add_argument("--encoder", choices=["mlp", "lstm"], default="mlp")
    parser.add_argument("--encoder-dropout", type=float, default=0.0)
    parser.add_argument("--encoder-num-layers", type=int, default=2)
    parser.add_argument("--encoder-hidden-size", type=int, default=None, help="the model's own hidden size when absent")
    parser.add_argument("--learning-rate", type=float, default=None, help="transformers' default when absent")
    parser.add_argument("--use-cpu", action="store_true", help="train on the CPU though there is a GPU")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """The training arguments beyond the tutorial's that were asked for."""
    extra: dict[str, Any] = {"use_cpu": True} if options.use_cpu else {}
    if options.learning_rate is not None:
        extra["learning_rate"] = options.learning_rate
    return extra


if __name__ == "__main__":
    main()
