"""A stock Linux kernel as a child partition: the judge that nobody here wrote."""
