"""Writes the Python examples of the documentation and the README as modules, for the type checkers.

``python tools/doc_examples.py FOLDER`` makes one file for each example, named after its page and its line there.
Examples for the frameworks below are left out.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Hundreds of megabytes each, which is much for the types of one example.
NOT_INSTALLED = ("pyspark", "ray")
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> dict[str, str]:
    """The examples of a page, by the name of their module."""
    text = page.read_text()
    return {
        f"{page.stem.lower().replace('-', '_')}_line_{text.count(chr(10), 0, match.start(1)) + 1}": match.group(1)
        for match in FENCE.finditer(text)
        if not re.search(rf"^(?:import|from) (?:{'|'.join(NOT_INSTALLED)})\b", match.group(1), re.MULTILINE)
    }


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for name, code in examples(page).items():
            (folder / f"{name}.py").write_text(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
