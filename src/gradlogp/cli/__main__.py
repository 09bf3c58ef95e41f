"""``python -m gradlogp.cli``."""

import sys

from gradlogp.cli import main

sys.exit(main())
