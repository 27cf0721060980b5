"""What several test files share: small stores, runs and models, and the command line as a user types it."""

import os
from pathlib import Path

# A process that a test starts finds this package too.
_FOUND = [str(Path(__file__).parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(_FOUND))
