"""What runs once per training: checks, Ray, the run's life, registration."""
