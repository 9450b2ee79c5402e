"""``python -m popxl.cli`` is ``popxl``."""

import sys

from .main import main

sys.exit(main())
