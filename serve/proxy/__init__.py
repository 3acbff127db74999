"""What Ray's own HTTP proxy is set up with; Ray finds `set_up_proxy` here by its address."""

from serve.proxy.set_up import set_up_proxy as set_up_proxy
