"""``python -m fastclip``: the same as the console script ``fastclip``."""

import sys

from .cli.main import main

sys.exit(main())
