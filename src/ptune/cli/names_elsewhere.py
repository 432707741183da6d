"""What flags and recipe keys are called elsewhere: in ChatGLM's scripts, PEFT's, LLaMA-Factory's, older transformers.

A name that somebody brings is no flag of ptune's, and the one that is spelled most like it is seldom the one meant.
"""

from __future__ import annotations

from collections.abc import Iterable

from ptune.errors import nearest

ELSEWHERE = {
    "num_virtual_tokens": "pre_seq_len prefix_length prefix_len prompt_length prompt_tokens soft_prompt_length "
    "n_tokens num_prompt_tokens virtual_tokens num_tokens prompt_len",
    "encoder mlp": "prefix_projection",
    "encoder": "encoder_type encoder_reparameterization_type reparameterization reparam_type peft_type method methods",
    "encoder_hidden_size": "prefix_hidden_size mlp_hidden_size lstm_hidden_size hidden_size bottleneck_size",
    "encoder_num_layers": "num_layers lstm_layers mlp_layers",
    "encoder_dropout": "hidden_dropout_prob lstm_dropout dropout",
    "init_text": "prompt_tuning_init_text prompt_init_text",
    "init_from": "ptuning_checkpoint adapter_name_or_path peft_model_id",
    "learning_rate": "lr learn_rate",
    "num_train_epochs": "epochs epoch num_epochs n_epochs max_epochs",
    "max_steps": "steps num_steps num_train_steps max_train_steps iterations",
    "per_device_train_batch_size": "batch_size train_batch_size micro_batch_size per_gpu_train_batch_size bs",
    "per_device_eval_batch_size": "eval_batch_size valid_batch_size per_gpu_eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation grad_accum grad_acc_steps accumulation_steps accumulate",
    "warmup_steps": "warmup num_warmup_steps",
    "lr_scheduler_type": "scheduler lr_scheduler",
    "max_length": "cutoff_len max_seq_length max_seq_len max_source_length max_target_length model_max_length "
    "block_size seq_length seq_len sequence_length context_length max_len",
    "model": "model_name_or_path model_name model_path model_id base_model pretrained_model_name_or_path base",
    "data": "train_file train_data data_path dataset dataset_name dataset_path training_data",
    "data_weights": "interleave_probs mix_weights dataset_weights",
    "eval_data": "validation_file valid_file val_file eval_file eval_dataset test_file dev_file val_data",
    "eval_rows": "val_set_size val_size eval_size",
    "limit": "max_samples max_train_samples num_samples",
    "columns": "prompt_column response_column history_column text_column",
    "template": "prompt_template template_name chat_template",
    "train_on all-turns": "mask_history train_on_all_turns assistant_only_loss",
    "quantization": "quantization_bit load_in_4bit load_in_8bit quantize bits",
    "dtype": "torch_dtype precision",
    "output": "save_dir output_path output_folder out_dir save_path",
    "overwrite": "overwrite_output_dir overwrite_cache",
    "num_proc": "preprocessing_num_workers num_workers",
    "max_new_tokens": "max_tokens new_tokens max_gen_len max_length",
    "trials": "n_trials num_trials max_trials",
    "num_beams": "beams beam_size beam_width",
}
"""What is meant, a value behind it where the name elsewhere is a switch → the names."""


def meant(name: str, known: Iterable[str]) -> str | None:
    """What an unknown name means: by its sense where that is known, else by its spelling; None where nothing is close.

    Args:
        name: With dashes or underscores, without dashes in front.
        known: The names there are, in either spelling.

    Returns:
        One of `known`, with a value behind it (`encoder mlp`) where the unknown name stands for one.
    """
    names = {one.replace("-", "_"): one for one in known}
    wanted = name.replace("-", "_").lower()
    for sense, elsewhere in ELSEWHERE.items():
        field, _, value = sense.partition(" ")
        if field in names and wanted in elsewhere.split():
            return f"{names[field]} {value}".rstrip()
    return nearest(name, names.values())
