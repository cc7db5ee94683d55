"""python -m sparseprune: the same as the sparseprune command."""

from __future__ import annotations

import sys

from sparseprune.cli import main

sys.exit(main())
