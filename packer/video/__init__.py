"""One video to one clip: find it, open it, choose the frames, decode exactly those, encode them."""
