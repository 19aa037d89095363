"""docs/judges.md says what the code says."""

from tests.judges import pages


def test_the_page_is_what_the_code_gives():
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page(), "run `python -m tests.judges.pages`"
