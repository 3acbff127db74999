"""Turns one video into one clip: find it, open it, choose the frames, decode exactly those, encode them."""
