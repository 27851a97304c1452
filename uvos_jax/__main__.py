"""`python -m uvos_jax` is `uvos`."""

import sys

from uvos_jax.cli.main import main

sys.exit(main())
