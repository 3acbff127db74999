"""What a complete pack holds, as text and as a picture."""
