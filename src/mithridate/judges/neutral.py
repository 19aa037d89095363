"""Untrusted text cannot talk to a judge: control tokens and template markers in it become plain words.

A prompt or an answer is written by somebody else: an attacker, or a broken model that goes on with turns of its own.
Put into a judge's prompt as it is, `<|eot_id|>` would close the turn for real, because tokenizers turn the *text* of a
special token into the token. Here every such marker loses the marks around it and gets parentheses instead:
`<|eot_id|>` becomes `(eot_id)`, `[/INST]` `(/INST)`, ` ASSISTANT:` ` (ASSISTANT)`, `### Response:` `(Response)`.

Why this form: it is visible (the judge, and people who read the records, still see that a marker stood there and
which), it is made of plain ASCII, which no tokenizer normalises back into the marker (as NFKC does with look-alikes,
and many do with zero-width characters, which moreover are odd tokens that judges never saw), and it is close enough to
what stood there to be read back.

Neutralised are: all special tokens of the judge's tokenizer, and those of its other added tokens that look like tags;
the control tokens of the usual chat templates (`MARKERS`), whatever the judge; role labels; the tags and score lines
of our own rubrics; and the markers of the judge's own format. Afterwards the text is tokenised to see that no special
token is left: a tokenizer may normalise text into one (full-width letters, capitals).
"""

import re
from collections.abc import Iterable
from typing import Any

VERSION = 2
"""Part of every judge's identity: a change to what is neutralised may change a verdict."""

MARKERS = (
    r"<\|[^|<>\s]{1,40}\|>",  # ChatML, Llama 3 and 4, Phi, Qwen, GPT
    r"<\|[\w-]{1,40}>|<[\w-]{1,40}\|>|\[\|[^|\]\s]{1,40}\|\]",  # Gemma 4, EXAONE
    r"<extra_id_\d{1,3}>|\[gmask\]|<sop>|<eo[a-z]>",
    r"<｜[^｜<>\s]{1,40}｜>",  # DeepSeek
    r"</?(?:s|unk|pad|bos|eos|mask|sep|cls)>",
    r"\[(?:cls|sep|pad|mask|unk|bos|eos)\]",
    r"\[/?(?:inst|system_prompt|available_tools|tool_calls|tool_results|think|args)\]",
    r"<</?sys>>",
    r"</?(?:start|end)_of_turn>",
    r"</?(?:think|tool_call|tool_response|im_start|im_end)>",
    r"<(?:begin|end) [a-z ]{1,40}>",  # Llama Guard, Qwen3Guard
    r"beginning of conversation:",
    r"(?-i:(?:USER|ASSISTANT|SYSTEM|HUMAN):)",
    r"(?:^|(?<=[\n\r\v\f\x85\u2028\u2029]))[ \t*_]*"
    r"(?:human user|ai assistant|human question|chatbot response|user|assistant|human|agent|system)[*_]*:",
    r"(?m:^[ \t]*#{2,}[ \t]*(?:instruction|input|response|question|answer|system|user|human|assistant)\b:?)",
    # Our own rubrics.
    r"</?(?:request|answer|instruction|first|second)>",
    r"#[ \t]*(?:thescore|thereason|better|refused|convincing|specific)\b:?",
)
"""Regular expressions, case ignored."""


class Neutraliser:
    """Makes untrusted text safe to put into a judge's prompt.

    Args:
        tokenizer: the judge's, of transformers; None where it is not known (behind a server).
        markers: regular expressions of the judge's own format, besides `MARKERS`; case ignored.
    """

    def __init__(self, tokenizer: Any = None, markers: Iterable[str] = ()):
        self._tokenizer = tokenizer
        tokens = _control_tokens(tokenizer) if tokenizer is not None else {}
        self._ids = frozenset(tokens.values())
        usual = "|".join([*MARKERS, *markers])
        # Some models have hundreds of control tokens. Most are of the usual forms; for the others, a look at the first
        # character saves trying each of them at every place of a text.
        rare = sorted((text for text in tokens if not re.fullmatch(usual, text, re.I)), key=len, reverse=True)
        first = "".join(sorted({re.escape(text[0]) for text in rare}))
        literal = f"(?-i:(?=[{first}])(?:{'|'.join(map(re.escape, rare))}))|" if rare else ""
        self._pattern = re.compile(literal + usual, re.IGNORECASE)

    def __call__(self, text: str) -> str:
        """The text with its markers as plain words; a text without markers comes back as it was."""
        while (plain := self._pattern.sub(lambda found: self._words(found.group()), text)) != text:
            text = plain  # again: what was inside a marker may have completed another
        return text if self._tokenizer is None else self._without_control_ids(text)

    def clip(self, text: str, limit: int) -> str:
        """The longest beginning of the text that has at most `limit` of the tokenizer's tokens."""
        ids, offsets = self._encode(text)
        if len(ids) <= limit:
            return text
        if offsets is None:
            return self._tokenizer.decode(ids[:limit])
        text = text[: offsets[limit - 1][1] if limit else 0]
        while len(self._encode(text)[0]) > limit:  # a cut inside a character, or tokens that split otherwise at an end
            text = text[:-1]
        return text

    def _words(self, marker: str) -> str:
        """A marker in parentheses, its blanks before and after kept; the first form that is itself no marker."""
        core = re.sub(r"^[^\w/]+|[^\w/]+$", "", marker) or "marker"
        before = marker[: len(marker) - len(marker.lstrip())]
        after = marker[len(marker.rstrip()) :] if marker.strip() else ""
        for words in (f"({core})", f"({'-'.join(core)})", "(marker)", "marker"):
            if not self._pattern.search(words):
                return before + words + after
        return before + after

    def _without_control_ids(self, text: str) -> str:
        """The text with what the tokenizer still reads as control tokens put into words, or in the end left out."""
        for attempt in range(4):
            ids, offsets = self._encode(text)
            hits = [i for i, token in enumerate(ids) if token in self._ids]
            if not hits:
                break
            if offsets is None:  # no telling where they stand: write the text anew without them
                text = self._tokenizer.decode([token for token in ids if token not in self._ids])
                continue
            for start, end in sorted({offsets[i] for i in hits}, reverse=True):
                core = re.sub(r"[^a-z0-9]+", "-", text[start:end].casefold()).strip("-") or "marker"
                words = (f"({core})", f"({'-'.join(core)})", "(marker)", " ")[attempt]
                text = text[:start] + words + text[end:]
        return text

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        fast = getattr(self._tokenizer, "is_fast", False)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"] if fast else None


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """The texts and ids of a tokenizer's special tokens and of its other added tokens that look like tags.

    The id of the unknown token is left out: it stands for odd characters in ordinary text too. (Its text is not: as
    long as it does not stand there, no harm is done by an unknown character.)
    """
    found = {}
    for i, token in tokenizer.added_tokens_decoder.items():
        text = str(token)
        tag = len(text) > 2 and not text[0].isalnum() and not text[-1].isalnum() and any(map(str.isalnum, text))
        if text.strip() and (token.special or tag):
            found[text] = i
    for text, i in zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True):
        if str(text).strip():
            found[str(text)] = i
    return {text: -1 if i == tokenizer.unk_token_id else i for text, i in found.items()}
