"""Many videos at once: decoder processes that can be killed, on this machine or on a Ray cluster."""
