"""Words thrown together: what a model writes that is sampled too hot. Signs that whole texts rarely have, counted.

Words that no language has but that could be English ("bleampry") are not known here; that takes a dictionary.
"""

import re
from itertools import pairwise

_FUNCTION_WORDS = """
a about above after again against all am among an and any are as at be because been before being below between both
but by can can't could did do does doesn't doing don't down during each either else every few for from had has have
having he her here hers him his how however i i'd i'll i'm if in into is isn't it it's its itself just let's like many
may me might more most much must my neither no nor not now of off on once one only onto or other our out over own per
please rather same shall she should since so some such than that that's the their them then there these they they're
this those through thus to too toward towards under until up upon us very was we were what when where whether which
while who whom whose why will with within without won't would yes yet you you're your yourself
"""
FUNCTION = frozenset(_FUNCTION_WORDS.split())
_OF_NOUN = r"(?:the|an?|my|your|his|their|our|its)"  # what a noun follows, now or soon
_PREPOSITION = r"(?:of|to|for|in|on|at|with|by|from|into|under|over|about|against|upon|through|between|during)"
# In small letters: a function word that stands before one that cannot follow, or before a stop; hyphens, commas and
# underscores where nobody puts them.
_SIGNS = re.compile(
    rf"\b(?:{_OF_NOUN} (?:{_PREPOSITION}|the|an?|my|your|his|her|their|and|or|but|is|are|was|were|you|i|it|he|they|we"
    r"|that|this|if|as|because|be|have|has|do|who|which|what|when|where)\b"
    r"|(?:of|for|from|into|at|by|with|and|or) (?:of|for|and|or|but|at|into)\b"
    r"|(?:to|on|in) (?:of|for|is|are)\b|to (?:to|or)\b|(?:i|we|he|she|they) (?:the|of|an?|for|in|to|with)\b"
    r"|(?:you you|that that that|is is|under under)\b"
    r"|(?:the|an?|of|your|my|their|our|from|into|under|for|with|to|or|and|at|by|which|who) ?[,.;:](?=[\s,]|$))"
    r"|[a-z](?:[-_](?=[\s,.;]|$)|-[a-z]+-[a-z]+-[a-z]|,-)|(?:^|\s)-[a-z]{2}|--(?=\w)|-\.|,,|\.-"
    r"|(?!\.\.)[.,;]{2}(?=\s|\w)"
)
_GLUE = re.compile(r"[,;.!?][A-Za-z]")
_GLUED = re.compile(r"[A-Za-z]{2}[,;][A-Za-z]|[a-z]{2}\.[a-z]{2}|[a-z]{2}[.!?][A-Z]")
_INNER = re.compile(r"[a-z]{2}[A-Z][a-z]|[a-z][A-Z]{2}|[A-Z]{2}[a-z]{3}")  # also names: SmolLM, JavaScript
_OTHER = "[\u0400-\u04ff\u0600-\u06ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]"
_TWO_SCRIPTS = re.compile(rf"[A-Za-z]{_OTHER}|{_OTHER}[A-Za-z]|\ufffd(?!\W*$)")
_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\n|[^\w\s]")
_ENOUGH, _RUN = 3, 5


def salad(prose: str, words: int) -> str | None:
    """Why the words are thrown together, or None: three signs, and one to every twelve words."""
    signs = len(_SIGNS.findall(prose.lower()))
    if _GLUE.search(prose):
        signs += len(_GLUED.findall(prose))
    if not prose.isascii():
        signs += 2 * len(_TWO_SCRIPTS.findall(prose))
    signs += 2 * sum(_heap(run) for run in _runs(prose) if len(run) >= _RUN)
    enough = max(_ENOUGH, words / 12)
    if signs + 1 >= enough:
        signs += bool(_INNER.search(prose))
    return f"{signs} signs of words thrown together" if signs >= enough else None


def _runs(prose: str) -> list[list[str]]:
    """Words in a row without a mark, a new line or a function word between them; none where all are too short."""
    tokens, runs = _TOKEN.findall(prose), [[]]
    content = [token[0].isalpha() and token.lower() not in FUNCTION for token in tokens]
    if bytes([True] * _RUN) not in bytes(content):  # most of the time
        return []
    for token, is_content in zip(tokens, content):
        if is_content:
            runs[-1] += [token] * (not token.isupper() or len(token) > 4)  # AI, HTML stand in both
        elif runs[-1]:
            runs.append([])
    return runs


def _heap(run: list[str]) -> int:
    """Whether a run is a heap: capitals and small letters by turns, or longer than any but a title's."""
    small = [word[0].islower() for word in run]
    turns = sum(a != b for a, b in pairwise(small))
    return (turns >= 3) + (len(run) >= 8 and sum(small) >= len(run) / 3)
