"""What is known and noted of one request: id, facts, metrics, log line, error answer."""
