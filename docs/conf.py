"""Settings of Sphinx; built by `./dev docs`."""

import sys
from pathlib import Path

# The pages that are written from the code stand beside this file.
sys.path.insert(0, str(Path(__file__).parent))
import _generate_ops

_generate_ops.write()

project = "OpenPopXL"
author = "The OpenPopXL developers"
project_copyright = "the OpenPopXL developers"

extensions = ["myst_parser"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
# Links to a heading of a page, as GitHub makes them.
myst_heading_anchors = 3

html_theme = "furo"
html_title = "OpenPopXL"
