"""Why a finished run's model answered as it did, clip by clip, and which labels it doubts."""
