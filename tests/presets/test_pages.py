"""docs/presets.md says what the preset files say."""

from tests.presets import pages


def test_the_page_is_what_the_files_give():
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page(), "run `python -m tests.presets.pages`"
