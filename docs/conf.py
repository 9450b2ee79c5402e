"""Settings of Sphinx; built by `./dev docs`."""

import os
import sys
from pathlib import Path
from typing import Any

# As wide as a page, whatever the terminal is: argparse breaks lines by it.
os.environ["COLUMNS"] = "100"
# The pages that are written from the code stand beside this file.
sys.path.insert(0, str(Path(__file__).parent))
import _generate_ops
import _generate_reference

_generate_ops.write()
_generate_reference.write()

project = "OpenPopXL"
author = "The OpenPopXL developers"
project_copyright = "the OpenPopXL developers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
# Links to a heading of a page, as GitHub makes them.
myst_heading_anchors = 3

# A name in single backticks is a link where it names something that is documented, and code elsewhere.
default_role = "py:obj"
add_module_names = False
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
# Attributes as fields of their class: properties of that name would be described twice otherwise.
napoleon_use_ivar = True

html_theme = "furo"
html_title = "OpenPopXL"


# Stands for a colon while Napoleon reads, which takes what precedes one in the first line of a property for its type.
COLON = "\ue000"


def hide_colon(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Hide the colons in the first line of a property's docstring."""
    if what == "property" and lines:
        lines[0] = lines[0].replace(":", COLON)


def show_colon(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Show them again."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def setup(app: Any) -> None:
    """Run before and after Napoleon, whose priority is the usual 500."""
    app.connect("autodoc-process-docstring", hide_colon, priority=400)
    app.connect("autodoc-process-docstring", show_colon, priority=600)
