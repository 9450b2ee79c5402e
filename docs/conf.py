"""Settings of Sphinx; built by `./dev docs`."""

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
