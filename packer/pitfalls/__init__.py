"""Names what may spoil the figure that a pack's videos give: too few of them, or one recording in several splits."""
