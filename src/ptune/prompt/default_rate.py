"""The learning rate of a run that names none.

In each step Adam moves a weight by about the learning rate. For a table of vectors that is itself the prompt, what a
step does therefore depends on how large the model's embeddings are, which differs by a factor of ten and more between
models: the rate is a share of their standard deviation. The weights of an MLP or LSTM are of one scale everywhere.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from ptune.choices import EMBEDDING, LEARNING_RATES
from ptune.encoders.initialise import embedding_std


def default_learning_rate(base: PreTrainedModel, encoder: str) -> float:
    """The rate for AdamW that suits a prompt encoder in front of a frozen model, to two digits.

    Args:
        base: The frozen model; its token embeddings are measured.
        encoder: A name of `ptune.encoders.ENCODERS` or `DEEP_ENCODERS`.
    """
    rate = LEARNING_RATES[encoder]
    if encoder == EMBEDDING:
        vocab_size = int(base.config.get_text_config().vocab_size)
        rate *= embedding_std(base.get_input_embeddings(), vocab_size=vocab_size)
    return float(f"{rate:.2g}")
