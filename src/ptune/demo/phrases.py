"""The words that the demo's customer messages are built from.

Every phrase belongs to one `Pool`. `common` phrases may stand in any message; `heldout` phrases stand only in held-out
messages, so that a score on those says something about wording never trained on. All was written for this project.

Placeholders: `{p}` the product as the customer calls it; in an order phrase `{o}` the order number; in a closing
`{name}` a first name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pool:
    """Phrases for one part of a message."""

    common: tuple[str, ...]
    """Phrases that training and held-out messages share."""
    heldout: tuple[str, ...]
    """Phrases that no training message holds."""


PRODUCTS: Mapping[str, Pool] = {
    "kettle": Pool(
        ("kettle", "electric kettle", "tea kettle", "glass kettle"), ("steel kettle", "travel kettle", "water kettle")
    ),
    "lamp": Pool(("lamp", "desk lamp", "floor lamp", "reading lamp"), ("table lamp", "bedside lamp", "garden lamp")),
    "laptop": Pool(
        ("laptop", "gaming laptop", "laptop computer", "new laptop"), ("work laptop", "student laptop", "small laptop")
    ),
    "phone": Pool(
        ("phone", "mobile phone", "smartphone", "cell phone"), ("android phone", "business phone", "new phone")
    ),
    "jacket": Pool(
        ("jacket", "rain jacket", "leather jacket", "winter jacket"), ("denim jacket", "ski jacket", "blue jacket")
    ),
    "chair": Pool(
        ("chair", "office chair", "armchair", "garden chair"), ("kitchen chair", "desk chair", "rocking chair")
    ),
}
"""Label → what customers call it."""

REQUESTS: Mapping[str, Pool] = {
    "refund": Pool(
        (
            "I want my money back for the {p}.",
            "Please refund the {p}.",
            "The {p} stopped working, so I would like a refund.",
            "I sent the {p} back last week and still have no refund.",
            "Could you refund what I paid for the {p}?",
            "I am not happy with the {p} and want a full refund.",
            "The {p} is nothing like the photo. I want my money back.",
            "You charged me twice for the {p}, please pay one back.",
            "When do I get my money back for the {p}?",
            "I returned the {p}, now give me the money back.",
            "The {p} broke after two days. Money back, please.",
            "Please return the money I spent on the {p}.",
            "How do I get a refund for the {p}?",
            "The {p} came with scratches, just refund me.",
        ),
        (
            "I would rather have my money back than keep the {p}.",
            "Kindly pay me back for the {p}.",
            "The {p} let me down and I expect a refund.",
            "Where is the refund for the {p} I sent back?",
            "Please put the money for the {p} back on my card.",
            "The {p} was a disappointment. Can I have my money back?",
            "I paid for the {p} twice and want the extra payment back.",
        ),
    ),
    "cancel": Pool(
        (
            "Please cancel the {p}.",
            "I want to cancel my order for the {p}.",
            "I changed my mind, do not send the {p}.",
            "Can I still cancel the {p} before it ships?",
            "I ordered the {p} by mistake, please cancel.",
            "Stop the order for the {p}, I do not need it any more.",
            "I found the {p} cheaper elsewhere, so cancel my order.",
            "My son ordered the {p} without asking. Cancel that, please.",
            "Please take the {p} off my order before you pack it.",
            "I do not want the {p} any more, please stop the order.",
            "How can I cancel the {p} I ordered this morning?",
            "Kindly cancel the purchase of the {p}.",
            "I would like to call off my order for the {p}.",
            "Do not ship the {p}, I have changed my mind.",
        ),
        (
            "I no longer need the {p}, so please do not ship it.",
            "Is it too late to cancel the {p}?",
            "I pressed the button too early: cancel the {p}, please.",
            "Please call off the purchase of the {p}.",
            "We bought the {p} by accident and want to cancel.",
            "Drop the {p} from my order, I changed my mind.",
            "Please stop the {p} from being sent, I bought it by mistake.",
        ),
    ),
    "delivery": Pool(
        (
            "Where is my {p}?",
            "My {p} has not arrived yet.",
            "The {p} should have come on Monday but nothing is here.",
            "When will the {p} be delivered?",
            "I am still waiting for the {p}.",
            "The tracking page for my {p} has not moved for a week.",
            "The courier never brought the {p}.",
            "Can you tell me when my {p} will arrive?",
            "It has been ten days and there is no sign of the {p}.",
            "The driver left without handing over my {p}.",
            "The parcel with the {p} is late.",
            "I was told the {p} would be here by Friday, but no.",
            "The delivery of the {p} is overdue.",
            "Did you ship the {p} yet? Nothing came so far.",
        ),
        (
            "Do you know where my {p} is?",
            "The {p} still has not turned up.",
            "How much longer until the {p} arrives?",
            "The delivery of my {p} is three days late.",
            "The package with my {p} seems to be lost.",
            "Nobody came with the {p} although I was home all day.",
            "I keep waiting but the {p} never came.",
        ),
    ),
    "repair": Pool(
        (
            "The {p} stopped working, can you fix it?",
            "Please repair my {p}.",
            "My {p} is broken and I want it repaired.",
            "Can someone have a look at my {p} and fix it?",
            "The {p} broke, please repair it under warranty.",
            "I dropped the {p}. Do you do repairs?",
            "I would like to send the {p} in for repair.",
            "The {p} did not last a month and needs fixing.",
            "How do I get my {p} repaired?",
            "The {p} came apart at the side. Could you mend it?",
            "Is the repair of the {p} covered by the warranty?",
            "A part of the {p} came off and I need it fixed.",
            "I love the {p}, so please fix it for me.",
            "Where do I bring my {p} for a repair?",
        ),
        (
            "Something on the {p} is broken. Can you repair it?",
            "My {p} gave up yesterday, please fix it.",
            "Could your workshop mend the {p}?",
            "The {p} needs a repair after only a month.",
            "I want to keep the {p} but it must be fixed.",
            "What does it cost to have the {p} fixed?",
            "The {p} got damaged and I am looking for a repair.",
        ),
    ),
    "invoice": Pool(
        (
            "Please send me the invoice for the {p}.",
            "I need a receipt for the {p}.",
            "There was no invoice in the box with the {p}.",
            "Can I get an invoice for the {p} with my company name?",
            "My accountant asks for the invoice of the {p}.",
            "The invoice for the {p} shows the wrong address.",
            "Where can I download the invoice for my {p}?",
            "I lost the receipt for the {p}, please send a copy.",
            "Could you email me the invoice for the {p}?",
            "I never got a receipt for the {p}.",
            "The invoice for the {p} is not right, please correct it.",
            "For my taxes I need an invoice for the {p}.",
            "Please make out the invoice for the {p} to my office.",
            "Do you have a copy of the invoice for my {p}?",
        ),
        (
            "The box with the {p} came without a receipt, please send one.",
            "I cannot find the invoice for the {p}, can I have a copy?",
            "My company needs an invoice for the {p}.",
            "Please correct the name on the invoice for the {p}.",
            "I would like the receipt for the {p} by email.",
            "Can you resend the invoice for my {p}?",
            "An invoice with tax shown for the {p} would help me.",
        ),
    ),
}
"""Label → what the customer asks for. What is asked for decides, not the misfortune that is told."""

URGENCIES: Mapping[str, Pool] = {
    "urgent": Pool(
        (
            "This is urgent.",
            "It is urgent.",
            "Very urgent!",
            "Urgent!",
            "I need this urgently.",
            "As soon as possible, please.",
            "I need it today.",
        ),
        ("Please treat this as urgent.", "This is really urgent.", "Urgent, please!", "It is an urgent matter."),
    ),
    "normal": Pool(("",), ("",)),
}
"""Label → what the customer says about haste. Nothing said means `normal`."""

ORDERS = Pool(
    (
        "Order {o}.",
        "My order number is {o}.",
        "The order number is {o}.",
        "Order no. {o}.",
        "Reference {o}.",
        "Order number: {o}.",
        "This is about order {o}.",
    ),
    ("It was order {o}.", "My reference is {o}.", "Order ID {o}.", "The order is {o}.", "See order {o}."),
)
"""Sentences that give the order number."""

INLINE_ORDERS = Pool(("{p} (order {o})", "{p} ({o})", "{p} (order no. {o})"), ("{p} (ref {o})", "{p} [{o}]"))
"""Ways to give the order number right after the product."""

NO_ORDERS = Pool(
    ("", "", "", "I lost the order number.", "I have no order number here."),
    ("", "", "I cannot find my order number.", "I forgot the order number."),
)
"""What a message without an order number says about it; mostly nothing."""

ASIDES = Pool(
    ("I bought from your website.", "I am an old customer.", "This was a gift.", "I paid 60 euros."),
    ("I shop here a lot.", "My sister uses your shop too.", "I paid by card."),
)
"""Sentences that change nothing in the ticket."""

GREETINGS = Pool(
    ("Hi,", "Hello,", "Good morning,", "Dear team,", "Hello there,", "Hi team,", "Hey,"),
    ("Good evening,", "Hi there,", "Dear support,", "Greetings,", "Good afternoon,"),
)

CLOSINGS = Pool(
    ("Thanks.", "Thank you!", "Best regards, {name}", "Regards, {name}", "Thanks, {name}", "Cheers, {name}"),
    ("Kind regards, {name}", "Thanks a lot, {name}", "Much appreciated.", "Many thanks, {name}"),
)

NAMES = Pool(
    ("Anna", "Tom", "Maria", "Ben", "Lena", "Sam", "Ravi", "Mei", "Carlos", "Ida"),
    ("Paul", "Nina", "Omar", "Julia", "Kenji", "Eva"),
)
