"""What is made of a trace."""
