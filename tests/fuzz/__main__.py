"""`python -m tests.fuzz --cases N --seed S`: see `run`."""

import sys

from .run import main

sys.exit(main())
