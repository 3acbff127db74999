"""Free ports of this machine's loopback address."""

import socket


def free_ports(count: int) -> list[str]:
    """Returns ports that were free a moment ago, all different, as text for command lines."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
