"""`python -m uvos_jax.train --config=cosnet:tiny --workdir=DIR`: the same as `uvos train`."""

import sys

from uvos_jax.train.command import main

if __name__ == "__main__":
    sys.exit(main())
