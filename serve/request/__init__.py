"""What belongs to one request, whichever process handles it: id, record, log line, metrics, error answer."""
