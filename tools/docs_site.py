"""MkDocs hook: README, CONTRIBUTING, SECURITY and CHANGELOG are on the site too; relative links keep working.

The pages are written to be read in the repository, where docs/ is one folder of several. On the site, a link to
another page leads to that page, a link to a file outside docs/ to a copy of it under files/, and of a link to a folder
only the text is left.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
PAGES |= {"CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    sources = {f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri.endswith(".md")} | PAGES
    for source, place in sources.items():
        text, copied = for_site((ROOT / source).read_text(encoding="utf-8"), source)
        if known := files.get_file_from_path(place):
            files.remove(known)
        files.append(File.generated(config, place, content=text))
        for name in copied:
            if files.get_file_from_path(f"files/{name}") is None:
                files.append(File.generated(config, f"files/{name}", abs_src_path=str(ROOT / name)))
    return files


def for_site(text: str, source: str) -> tuple[str, set[str]]:
    """A page's text with its links as the site has them, and the repository's files that must be copied for them."""
    copied: set[str] = set()

    def moved(found: re.Match[str]) -> str:
        image, words, target, anchor = found.group(1), found.group(2), found.group(3), found.group(4) or ""
        name = os.path.normpath(os.path.join(os.path.dirname(source), target))  # noqa: PTH118, PTH120 (as text)
        if (ROOT / name).is_dir():
            return words
        if name in PAGES:
            place = PAGES[name]
        elif name.startswith("docs/"):
            place = name.removeprefix("docs/")
        else:
            place = f"files/{name}"
            copied.add(name)
        return f"{image}[{words}]({place}{anchor})"

    return _LINK.sub(moved, text), copied
