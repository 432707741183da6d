"""What a prompt can be trained for beside a causal model's answers, by the names of `--task`.

`classify` gives a text, or a pair, one of some labels; `tag` gives every word one; `qa` finds the answer to a question
in a text; `seq2seq` writes a text for another; `fill` classifies by the word that a masked model puts in a gap, as in
Liu et al. 2021, "GPT Understands, Too".
"""

from __future__ import annotations

from typing import Final

from ptune.choices import CLASSIFY, FILL, QA, SEQ2SEQ, TAG
from ptune.config import TaskType
from ptune.errors import unknown

DATA_TASKS: Final = (CLASSIFY, TAG, QA, SEQ2SEQ, FILL)
LABEL_TASKS: Final = (CLASSIFY, TAG, FILL)
"""Those with a set of labels."""
TASK_TYPES: Final = {
    CLASSIFY: TaskType.SEQ_CLS,
    TAG: TaskType.TOKEN_CLS,
    QA: TaskType.QUESTION_ANS,
    SEQ2SEQ: TaskType.SEQ_2_SEQ_LM,
    FILL: TaskType.MASKED_LM,
}
"""What the frozen model of each task is for."""


def check_task(task: str) -> None:
    """Raise `ConfigError` for a task that is none of these."""
    if task not in DATA_TASKS:
        raise unknown("task", str(task), DATA_TASKS)
