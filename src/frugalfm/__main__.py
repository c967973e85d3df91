"""``python -m frugalfm`` is the ``frugalfm`` command."""

import sys

from frugalfm.cli import main

sys.exit(main())
