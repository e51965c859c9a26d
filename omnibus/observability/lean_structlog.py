"""Importing this imports structlog without rich, which it takes along wherever that is installed: 4 MiB a process.

For processes of ours, before anything else imports structlog: a program that uses Omnibus as a library may want structlog's own
tracebacks, which need rich.
"""

import sys

if "rich" not in sys.modules and "structlog" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment] # by which an import of it fails
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
