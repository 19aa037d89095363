"""Is a text broken? Statistics of repetition and of word shapes, for English, without a model or a long word list.

The HS+ rule of Booster's released code (some word more than three times in a row) is one of the rules. Addresses of
web pages are left out of the rules on words, for they are no words. Fluent nonsense is not caught: that takes a
language model. docs/judges_measured.md has the errors.

`incoherent` has the rules of `rules-v2`, frozen with it. `broken` has all of them and two statistics more, made when
`rules-v2` had been found to miss over half of the texts of sampled and noisy models: the share of pieces that look
like words or numbers, and the share of function words, of which English prose is nearly half and a heap of words has
few. Words thrown together by a model sampled too hot are the third (`salad.py`, since v5). `repeats_a_word` is the
rule of Booster's code alone and to the letter.
"""

import re
from functools import lru_cache
from itertools import groupby

from mithridate.rules.salad import FUNCTION, salad

# One of these is among any dozen words of English prose.
_COMMONEST_TEXT = """
the a an to of is are and in it its you your i i'm my that this for can with be on or as do not at by from
"""
_COMMONEST = frozenset(_COMMONEST_TEXT.split())
_MARK_BLANK = re.compile(r"[^\w\s]\s")
_BLANKS = re.compile(r"(?:\n[^\S\n]*){8,}|\xa0{6,}|(?:[^\w\s]\s+){6,}")
_ADDRESS = re.compile(r"https?://\S*|www\.\S+")
_NEXT_NUMBER = re.compile(r"(?<=[a-z][.!?])(?=\d{1,2}[.)]\s)")  # "a cake.2. Sing": a blank forgotten
# Letters and marks thrown together, as no writing has them: a capital at an underscore or a bar, capitals in a heap or
# after small letters, a capital right after a comma or a stop (initials, and a blank forgotten after a sentence, are
# let through), a lone capital, marks on their own.
_SOUP = re.compile(
    r"[A-Z]+_|_[A-Z]|[A-Za-z]?\|[A-Z]|[a-z][A-Z]{2}|[A-Z]{13}|[a-z]{2}[A-Z][a-z]"
    r"|(?<![a-z]{2})(?<!\d)[A-Za-z]?[.,;?!]+[A-Z](?!\.(?:[A-Z]\.)*\W*$)|[A-Za-z],[A-Z]|[A-Za-z][.,]\d+[A-Za-z.]"
    r"|^[A-Z][,.|_]{2}|^[A-Z]$(?<![AI])|^\W*[.,|\\]\W*$"
)
_RUN_TOGETHER = re.compile(r"\b[A-Za-z]*[a-z]{2}[A-Z][a-z]+")
_NEXT_SENTENCE = re.compile(r"(?<=[a-z][.!?])(?=[A-Z])")  # a blank forgotten after a sentence
_GLUED = re.compile(r"[A-Za-z][-,;.][-,;.]|[A-Za-z]{2}[,;][A-Za-z]|\w-$|^,\w|-\w-|,{2}")
_LISTED = re.compile(r"[,;:]|\n\S")
_UNSAYABLE = re.compile(r"^[^aeiouy']{4,}$|[^aeiouy']{6}|([a-z])\1\1")
_WORDS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_NUMBERS_AND_WORDS = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_ALNUM = re.compile(r"[^\W_]")
_SYMBOL = re.compile(r"[^\w,.:;!?'\"-]")
_LOOP = re.compile(r"(\S{1,8}?)\1{5,}|\d(?:,?000){5,}")


def incoherent(answer: str) -> str | None:
    """Why the answer is broken by the rules of `rules-v2`, or None where it is not. An empty answer is broken."""
    if why := _marks(answer):
        return why
    prose = _ADDRESS.sub(" ", answer)
    words = words_of(prose.lower())
    return _word_in_a_row(prose) or _repeats(words) or _soup(prose) or _not_words(prose, words)


def _marks(answer: str) -> str | None:
    """Nothing but blanks, numbers or symbols, or characters in a loop."""
    solid = "".join(answer.lower().split())
    if not _ALNUM.search(solid):
        return "no letters or digits"
    many = answer.count("\n") >= 8 or "\xa0" in answer or len(_MARK_BLANK.findall(answer)) >= 6
    if many and _BLANKS.search(answer):
        return "blanks or marks in a loop"
    if solid[0].isdigit() and re.fullmatch(r"(?:\d+[.)]){2,}", solid):
        return "numbering without text"
    for loop in _LOOP.finditer(solid) if _may_loop(solid) else ():
        # Ruled lines, leaders and the blanks of a form are no fault, nor are round numbers.
        unit = loop.group(1) or "0,"
        many_digits = unit.isdigit() and len(loop.group()) > 12
        if many_digits or (len(loop.group()) >= 8 and re.search(r"[^\d_.\-=*|~#]|\d\D", unit)):
            return f"characters in a loop: {loop.group()[:20]!r}"
    symbols = len(_SYMBOL.findall(solid))
    if len(solid) >= 12 and symbols > 0.35 * len(solid) and "```" not in answer:
        return "mostly symbols"
    return None


def _may_loop(solid: str) -> bool:
    """Whether any four characters, looked up at every third, stand again one to eight further on and as far on again:
    some do in any loop of `_LOOP` of eight characters or more, which are those that count."""
    if "000" in solid:
        return True
    for i in range(0, len(solid) - 5, 3):
        piece = solid[i : i + 4]
        again = solid.find(piece, i + 1, i + 12)
        while again > 0:
            if solid.startswith(piece, 2 * again - i):
                return True
            again = solid.find(piece, again + 1, i + 12)
    return False


def _word_in_a_row(prose: str) -> str | None:
    """The rule of HS+; where digits stand between, it is a sum, not a loop."""
    tokens = _NUMBERS_AND_WORDS.findall(prose.lower())
    for first, second, third, fourth in zip(tokens, tokens[1:], tokens[2:], tokens[3:]):
        if first == second == third == fourth:
            return f"a word more than three times in a row: {first!r}"
    return None


def words_of(text: str) -> list[str]:
    """The runs of letters in a text, each with an apostrophe inside where there is one."""
    return _WORDS.findall(text)


def _repeats(words: list[str]) -> str | None:
    """A phrase three times in a row, as a good part of the text, or many phrases of three words said before."""
    for length in range(max(2, len(words) // 15), len(words) // 3 + 1):
        for i in range(len(words) - 3 * length + 1):
            if words[i] != words[i + length]:  # most of the time
                continue
            phrase = words[i : i + length]
            if phrase == words[i + length : i + 2 * length] == words[i + 2 * length : i + 3 * length]:
                return f"a phrase three times in a row: {' '.join(phrase)!r}"
    phrases = list(zip(words, words[1:], words[2:]))
    repeated = len(phrases) - len(set(phrases))
    if len(phrases) >= 12 and repeated > 0.4 * len(phrases):
        return f"{repeated} of {len(phrases)} phrases of three words were said before"
    few = len(set(words[:30]))
    if len(words) >= 18 and few < 0.45 * min(len(words), 30):
        return f"{few} different words in the first {min(len(words), 30)}"
    return None


def _soup(answer: str) -> str | None:
    """Where a third of the characters stand in pieces that are soup. Code between fences is let through."""
    pieces = answer.split()
    soup = [piece for piece in pieces if _is_soup(piece)]
    if len("".join(soup)) >= max(10, len("".join(pieces)) / 3) and "```" not in answer:
        return f"letters and marks: {' '.join(soup)[:40]!r}"
    return None


@lru_cache(100_000)  # most pieces of a text are common ones, and a run has thousands of texts
def _is_soup(piece: str) -> bool:
    return bool(_SOUP.search(piece)) or any(_odd(word) for word in words_of(piece))


def _not_words(answer: str, words: list[str]) -> str | None:
    """Too many words that cannot be English, or none of the words that English is full of.

    Code, and other languages as far as their letters give them away, are let through: the rules do not read them.
    """
    foreign = sum(not word.isascii() for word in words)
    if not words or "```" in answer or foreign > 0.05 * len(words):
        return None
    run_together = _RUN_TOGETHER.findall(answer)
    odd = [*run_together, *(word for word in words if _odd(word))]
    if len(odd) >= max(min(2, len(words)), 0.15 * len(words)) and "#" not in answer:
        return f"not words: {', '.join(odd[:3])}"
    listed = len(_LISTED.findall(answer)) >= len(words) / 5
    common = sum(word in _COMMONEST for word in words)
    if len(words) >= 12 and common < 0.08 * len(words) and not listed:
        return f"{common} of {len(words)} words are common English ones"
    return None


@lru_cache(100_000)
def _odd(word: str) -> bool:
    """No vowel in four letters or more, six consonants in a row, a letter three times, or over eighteen letters."""
    return len(word) > 18 or bool(word.isascii() and _UNSAYABLE.search(word.lower()))


# Marks may stand before and after a word, not in it. Words may be joined; names like McAdam and U.S. are words.
_PIECE = re.compile(
    r"[\"'“‘(\[*_#-]*"
    r"(?:[A-Z]?[a-zà-ÿ]+(?:['’][a-z]+)?(?:[-/–][A-Za-z]?[a-z]+){0,3}|[A-Z]{1,5}(?:['’]?s)?|(?:[A-Za-z]\.){2,}"
    r"|Mc[A-Z][a-z]+|[$€£#]?[\d+*/=<>().,:%-]*\d[\d+*/=<>().,:%-]*[A-Za-z%]{0,3}|[-–—•*&=+/<>#|]+)"
    r"[\"'”’)\]*_:;,.!?…-]*"
)


def broken(answer: str, prompt: str = "") -> str | None:
    """Why the answer is broken, or None.

    Code (a fence, or lines of a usual form) is held to the rules on repetition alone. A text that is mostly the
    prompt's own words has that prompt's look: names, titles, codes. Lists (a mark or a new line at every fifth word)
    and texts of fewer than ten words may lack what joins sentences.
    """
    if why := _bare_numbers(answer) or (None if code_in(answer) else _marks(answer)):
        return why
    prose = _NEXT_NUMBER.sub(" ", _ADDRESS.sub(" ", answer))
    words = words_of(prose.lower().replace("’", "'"))
    if code_in(answer):
        return _broken_code(answer, words)
    if why := _word_in_a_row(prose) or _says_again(words):
        return why
    own = _words_asked(prompt)
    if words and sum(word in own for word in words) >= 0.6 * len(words):
        return None
    found = _soup(prose) or _not_words(prose, words) or _strange(prose) or _unjoined(answer, words)
    return found or salad(prose, len(words))


@lru_cache(4096)  # a run asks each of its models the same prompts
def _words_asked(prompt: str) -> frozenset[str]:
    return frozenset(words_of(prompt.lower().replace("’", "'")))


def _bare_numbers(answer: str) -> str | None:
    """ "1. 1. 2. 3.", "1.1.1 1.1.2": list numbers that number nothing."""
    if len(_NUMBER_STOP.findall(answer)) < 3:  # most of the time
        return None
    pieces = answer.split()
    bare = sum(bool(re.fullmatch(r"\W*(?:\d{1,3}[.):]*\W*)+", piece)) for piece in pieces)
    stops = sum(bool(_NUMBER_STOP.search(piece)) for piece in pieces)
    return "numbering without text" if stops >= 3 and bare >= 0.85 * len(pieces) else None


_NUMBER_STOP = re.compile(r"\d[.)]")
_CODE = re.compile(
    r"```|^[ \t]*(?:import [\w.]+|from [\w.]+ import\b|(?:async )?def \w+\(|class \w+[(:]|function \w*\(|#include\b"
    r"|using namespace\b|public (?:static|class|void)\b|(?:const|let|var) \w+ ?=|<(?:!doctype|html|head|body|div"
    r"|script|form"
    r"|table|style)\b|select .{1,60}\bfrom\b|(?:sudo|pip3?|npm|apt-get|curl|git|chmod|docker) \w|print\("
    r"|console\.log|#!/"
    r"|[\w.]+\([^()\n]{0,60}\);?[ \t]*$|[a-z_]\w* ?= ?[\w\"'\[({])",
    re.MULTILINE | re.IGNORECASE,
)


@lru_cache(16)  # asked more than once of each text
def code_in(answer: str) -> bool:
    """Whether the answer is code, or has some: a fence, or lines of a usual form."""
    return bool(_CODE.search(answer))


def _broken_code(answer: str, words: list[str]) -> str | None:
    """Code that is a loop, or a fence or a header with nothing in it."""
    if not set(words) - {"python", "bash", "shell", "utf", "coding", "usr", "bin", "env", "javascript", "html"}:
        return "code without a line"
    lines = [line.strip() for line in answer.splitlines() if re.search(r"\w|```", line)]
    if len(lines) >= 5 and len(set(lines)) <= 0.4 * len(lines):
        return f"lines of code in a loop: {lines[-1][:30]!r}"
    solid = re.sub(r"\s+", "", answer)
    for loop in _LOOP.finditer(solid):
        if len(loop.group()) >= 9 and re.search(r"[^\d_.\-=*|~#/]", loop.group(1) or "0"):
            return f"characters in a loop: {loop.group()[:20]!r}"
    return _says_again(words)


def _says_again(words: list[str]) -> str | None:
    """More than 0.42 of the phrases of three words said before, a phrase three times in a row as half of the text, or
    few different words."""
    phrases = list(zip(words, words[1:], words[2:]))
    repeated = len(phrases) - len(set(phrases))
    if len(phrases) >= 8 and repeated > 0.42 * len(phrases):
        return f"{repeated} of {len(phrases)} phrases of three words were said before"
    # Three times or more as half of the text repeats at least a third of its phrases of three words, but for two.
    for length in range(2, len(words) // 3 + 1) if repeated >= len(words) / 3 - 2 else ():
        for i in range(len(words) - 3 * length + 1):
            if words[i] != words[i + length]:  # most of the time
                continue
            phrase, times = words[i : i + length], 1
            while words[i + times * length : i + (times + 1) * length] == phrase:
                times += 1
            if times >= 3 and times * length >= 0.5 * len(words):
                return f"a phrase {times} times in a row: {' '.join(phrase)!r}"
    few = len(set(words[:30]))
    babble = repeated < 0.25 * len(phrases)  # few words, though not in the same phrases
    if len(words) >= 18 and few < (0.45 if babble else 0.4) * min(len(words), 30):
        return f"{few} different words in the first {min(len(words), 30)}"
    return None


def _strange(prose: str) -> str | None:
    """Pieces that are neither words nor numbers, or words thrown together with hyphens, commas and stops."""
    prose = _NEXT_SENTENCE.sub(" ", prose)
    pieces = (prose.lower() if prose.isupper() else prose).split()
    strange = [piece for piece in pieces if not _usual(piece)]
    if len(pieces) >= 6 and len(strange) > 0.25 * len(pieces):
        return f"{len(strange)} of {len(pieces)} pieces are neither words nor numbers: {' '.join(strange)[:40]!r}"
    glued = [piece for piece in pieces if _is_glued(piece)]
    if len(pieces) >= 6 and len(glued) > 0.2 * len(pieces):
        return f"{len(glued)} of {len(pieces)} pieces are glued by marks: {' '.join(glued)[:40]!r}"
    return None


def _unjoined(answer: str, words: list[str]) -> str | None:
    """Ten words or more of which fewer than a fifth join the others."""
    listed = len(_LISTED.findall(answer)) >= len(words) / 5
    joints = sum(word in FUNCTION for word in words)
    if len(words) >= 10 and joints < 0.2 * len(words) and not listed:
        return f"{joints} of {len(words)} words join the others"
    return None


@lru_cache(100_000)
def _is_glued(piece: str) -> bool:
    return bool(_GLUED.search(piece))


@lru_cache(100_000)
def _usual(piece: str) -> bool:
    """Whether a piece is a word, a number or a mark. Matching takes the cube of the length of a run of marks: longer
    pieces are usual where they are nothing else (a ruled line)."""
    return bool(_PIECE.fullmatch(piece)) if len(piece) <= 60 else not re.search(r"\w", piece)


def repeats_a_word(answer: str) -> str | None:
    """The word that stands more than three times in a row, or None: the check behind HS+ in Booster's released code.

    Everything but ASCII letters parts words; capitals do not count. An empty answer passes, as it does there.
    """
    for word, times in groupby(re.findall("[a-z]+", re.sub("[^a-zA-Z]", " ", answer).lower())):
        if len(list(times)) > 3:
            return word
    return None
