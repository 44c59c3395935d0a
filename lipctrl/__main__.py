"""`python -m lipctrl` is the command `lipctrl`."""

import sys

from lipctrl.cli.main import main

sys.exit(main())
