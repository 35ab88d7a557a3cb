"""Writes the Python examples of the documentation and the README as modules, for the type checkers.

``python tools/doc_examples.py FOLDER`` makes one file for each example, named after its page and its line there.
Examples for the frameworks below are left out.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests_py"))

from doc_pages import examples

#: Hundreds of megabytes each, which is much for the types of one example.
NOT_INSTALLED = re.compile(r"^(?:import|from) (?:pyspark|ray)\b", re.MULTILINE)


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for example in examples("python"):
        if not NOT_INSTALLED.search(example.text):
            name = re.sub(r"\W+", "_", f"{Path(example.page).stem}_line_{example.line}".lower())
            (folder / f"{name}.py").write_text(example.text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
