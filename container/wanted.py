"""Prints what vitp and its extras need, a line each, so that they are a layer of their own.

python wanted.py pyproject.toml EXTRA...
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
extras = [name for extra in sys.argv[2:] for name in project["optional-dependencies"][extra]]
print(*project["dependencies"], *extras, sep="\n")
