"""``python -m gradlogp``."""

import sys

from gradlogp.cli import main

sys.exit(main())
