"""New labels for the samples of a pack, without decoding a video."""
