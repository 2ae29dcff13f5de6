"""Training and evaluation: the only code that knows the Runner, DDP and files."""
