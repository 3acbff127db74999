"""Ray's own HTTP proxy, as we set it up. Ray finds `set_up_proxy` by the address `serve.proxy.set_up_proxy`."""

from serve.proxy.set_up import set_up_proxy as set_up_proxy
