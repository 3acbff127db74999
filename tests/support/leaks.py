"""What no answer of a server may hold."""

import re

LEAKS = re.compile(rb'Traceback|File \\?"|/(?:home|work|tmp|root|usr|app|build)/|site-packages|\.py\b|0x[0-9a-f]{8}')
"""A stack, a path of the machine, or an address in memory."""
