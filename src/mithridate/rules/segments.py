"""A text as the rules read it: plain, in sentences and clauses, without what is said about it afterwards."""

import re
import unicodedata
from functools import lru_cache

from mithridate.rules.coherence import words_of

_QUOTES = str.maketrans({"‘": "'", "’": "'", "ʼ": "'", "´": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"'})
_MARKS = re.compile(r'["*]+|^[#>]+ |(?<=\s)_+|_+(?=\s)', re.MULTILINE)

_QUOTED = re.compile(r'"[^"\n]{3,}"|“[^”\n]{3,}”|(?<![\w])‘[^’\n]{3,}’(?!\w)')
_TURN = re.compile(
    r"(?:[,;:.]|\s[-–—])? (?:but|however|though|although|yet|nevertheless|nonetheless|that said|still)\b,? (?=\S)|; "
    r"| — | -- "
)
_JOINT = re.compile(r"^(?:but|however|and|so|yet|still|though|that said|nevertheless|anyway),? ")
_LEADING = re.compile(r"^(?:while|although|though|even though|since|because|as much as) (?=i |i'|we |this |it |that )")


def plain(text: str) -> str:
    """Small letters, plain quotes as none at all, single blanks, no Markdown marks; line breaks stay."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES).lower()
    text = _MARKS.sub("", re.sub(r"[^\S\n]+", " ", text))
    return re.sub(r"[^\S\n]+", " ", text).strip()


def unquoted(answer: str) -> str:
    """The answer without what it quotes, which is not the speaker's own; an answer that is one quotation is kept."""
    outside = _QUOTED.sub(" ", answer)
    words = words_of(outside.lower())
    return outside if len(words) > 1 or words in (["say"], ["reply"], ["tell"], ["write"]) else answer


def sentences(text: str) -> list[str]:
    """The sentences of a plain text. A stop after a number in front (a list's) or in an abbreviation ends none."""
    parts = re.split(r"(?<=[.!?…])(?<!\d\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bmr\.)(?<!\bdr\.)[')\]]* +|\n+", text)
    return [part.strip() for part in parts if part.strip()]


def clauses(sentence: str) -> list[str]:
    """A sentence cut where it turns: at "but", "however", a semicolon, after "While I cannot ...,"."""
    opened = _LEADING.match(sentence)
    if opened:
        head, comma, rest = sentence[opened.end() :].partition(", ")
        return [head, *clauses(rest)] if comma else [head]
    parts = [_JOINT.sub("", part.strip(" ;")) for part in _TURN.split(sentence)]
    return [part for part in parts if part.strip(" ,")]


def stems(text: str) -> frozenset[str]:
    """Content words, cut to five letters so that steal, steals and stealing agree."""
    return frozenset(word[:5] for word in words_of(text) if len(word) > 2 and word not in _EMPTY)


_ENDING = re.compile(r"(?:'s|ing|ed|es|e|s)$")


@lru_cache(100_000)
def root(word: str) -> str:
    """A word without its ending, cut to five letters, so that turn, turning and turned agree, and make and making.

    Unlike `stems`, for any word: whether an answer says no more than the request did.
    """
    short = _ENDING.sub("", word.removesuffix("'s"))
    if len(short) < 3:
        return word[:5]
    return (short[:-1] if len(short) > 3 and short[-1] == short[-2] and short[-1] not in "sl" else short)[:5]


# Words too common in requests and answers to show that the one speaks to the other.
_EMPTY_TEXT = """
about advice after again all also and any are around as been before being below between both but by can can't cannot
could did do does doing don't done down during each either else even ever every example explain few first for from
further get give given giving go got guide guidance had has have having he help helping her here here's him his how i'd
i'll i'm i've information instruct instruction instructions into isn't it its just keep know let let's like made make
makes making many may me might more most much must my need needs no nor not now of off on once one only onto or other
our out over own people person please provide providing put quick same say see shall she should show since so some
somebody someone something steps step such sure take tell than that that's the their them then there these they thing
things think this those through thus tips to too try two under until up upon us use used using very want was way ways
we well were what when where which while who whom whose why will with within without won't would yes yet you you'd
you'll you're your yourself
create develop write design generate produce describe outline detailed detail teach tutorial manual script plan program
list article post blog story
"""
_EMPTY = frozenset(_EMPTY_TEXT.split())
