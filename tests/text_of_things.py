"""Texts to compress, written for the tests."""

from __future__ import annotations

_NAMES = ("kettle", "lamp", "phone", "store", "table", "window", "carpet", "mirror", "basket", "ladder")
_PLACES = ("the hall", "the yard", "the cellar", "the attic", "a drawer", "the kitchen", "the shed")


def things(count: int) -> str:
    """Paragraphs of two sentences, each about another thing."""
    return "\n\n".join(
        f"The {_NAMES[at % len(_NAMES)]} number {at} costs {3 * at + 7} coins. "
        f"It stands in {_PLACES[at % len(_PLACES)]}, and nobody moved it!"
        for at in range(count)
    )


CHINESE = (
    "水壶今天离开了商店。它的价格是四十元！台灯坏了，没有人接电话。第二笔付款会退还给你吗？"
    "「会的。」店员说。柜台旁边有一面镜子，镜子后面是楼梯。梯子在院子里，地毯在阁楼上。"
)
