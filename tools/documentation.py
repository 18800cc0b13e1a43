"""What the site has beside `docs/`: pages that lie elsewhere in the repository, and the files that pages link to.

Links between files are relative, so that they work on a code host. mkdocs knows `docs/` alone; this hook of it
(`mkdocs.yml`) adds what lies elsewhere and writes the links to it anew.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Where they lie in the repository, and on the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/deploy/README.md": "deploying-cpp.md",
}

CODE = r"^```.*?^```|^    .*?$|`[^`\n]*`"
LINK = re.compile(rf"{CODE}|(?<=\]\()(?![a-z]+:|#)(?P<file>[^)#\s]+)", re.M | re.S)


def linked_file(link: str, page: str) -> str:
    """The file of the repository that a page of it links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def links(markdown: str) -> list[str]:
    """The relative links of a page, without fragments and without what only looks like links in code."""
    return [match["file"] for match in LINK.finditer(markdown) if match["file"]]


def _on_site(file: str) -> str:
    return PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else f"files/{file}")


def on_files(files: Any, config: Any) -> None:
    """Adds the pages that lie elsewhere, and every file outside of `docs/` that a page links to."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page in list(files.documentation_pages()):
        for link in links(page.content_string):
            source = linked_file(link, _in_repository(page.src_uri))
            if files.get_file_from_path(_on_site(source)) is None and (ROOT / source).is_file():
                files.append(File.generated(config, _on_site(source), abs_src_path=str(ROOT / source)))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Writes the links of a page for the site, whose pages lie in one folder."""
    source = _in_repository(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        return _on_site(linked_file(match["file"], source)) if match["file"] else match[0]

    return LINK.sub(replaced, markdown)


def _in_repository(page: str) -> str:
    return {site: source for source, site in PAGES.items()}.get(page, f"docs/{page}")
