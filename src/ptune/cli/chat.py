"""`ptune chat DIR`: a conversation on the terminal, streamed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ptune.choices import NEW_TOKENS
from ptune.cli.flags import Parser
from ptune.cli.session_flags import add_session_flags, generation_options, open_answerer, start_sampling
from ptune.cli.streams import check_decoded
from ptune.errors import PTuneError, one_line

_HELP = "/base  show or hide the frozen model's answer too    /reset  forget the conversation    /exit  leave"


def build_parser() -> Parser:
    """The flags of `ptune chat`."""
    parser = Parser(
        "chat",
        "Talk to a model with a trained prompt. The answers go to standard output.",
        usage="DIR [flags]",
        more=f"while talking:\n  {_HELP}",
    )
    add_session_flags(parser)
    parser.add_argument(
        "--history", action="store_true", help="send earlier turns along (always so with the template 'chat')"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse(argv)
    from ptune.cli.quiet import quiet_libraries

    quiet_libraries()
    answerer = open_answerer(args)
    start_sampling(args)
    if sys.stdin.isatty():
        print(_HELP)
    Conversation(answerer, args).loop()
    return 0


class Conversation:
    """The turns so far and how to go on."""

    def __init__(self, answerer: Any, args: Any) -> None:
        self.answerer, self.args = answerer, args
        self.options = generation_options(args)
        self.keeps_history = args.history or answerer.template.name == "chat"
        self.history: list[tuple[str, str]] = []
        self.compare = args.compare

    def loop(self) -> None:
        """Read and answer until the input ends."""
        while True:
            try:
                text = input("you> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            if text in ("/exit", "/quit"):
                return
            if text == "/reset":
                self.history.clear()
                print("(forgotten)")
            elif text == "/base":
                self.compare = not self.compare
                print(f"(the frozen model's answer is {'shown' if self.compare else 'hidden'})")
            elif text.startswith("/") and len(text.split()) == 1:
                print(_HELP)
            elif text:
                self.turn(text)

    def turn(self, text: str) -> None:
        """Answer one message; an error of the user's (a text too long) does not end the conversation."""
        try:
            ids = self.fitting(check_decoded(text, "that line"))
            answer = self.say("base" if self.args.no_prompt else "tuned", ids)
            if self.compare and not self.args.no_prompt:
                self.say("base", ids)
        except PTuneError as error:
            print(f"({one_line(error)})")
            return
        except KeyboardInterrupt:
            print("\n(stopped)")
            return
        if self.keeps_history:
            self.history += [("user", text), ("assistant", answer)]

    def fitting(self, text: str) -> Any:
        """Token ids of the conversation with `text`; the oldest turns are dropped until it fits the context."""
        wanted = self.args.max_new_tokens or NEW_TOKENS
        while True:
            ids = self.answerer.encode(text, history=tuple(self.history), system=self.args.system)
            room = self.answerer.room(ids)
            if room is None or not self.history or room >= wanted:
                return ids
            del self.history[:2]

    def say(self, who: str, ids: Any) -> str:
        """Stream one answer to standard output."""
        from transformers import TextStreamer

        new_tokens = self.answerer.new_tokens(ids, self.args.max_new_tokens)
        print(f"{who}> ", end="", flush=True)
        streamer = None
        if self.args.num_beams == 1:
            streamer = TextStreamer(self.answerer.tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer: str = self.answerer.answer_ids(
            ids, with_prompt=who == "tuned", streamer=streamer, max_new_tokens=new_tokens, **self.options
        )
        if streamer is None:
            print(answer)
        return answer
