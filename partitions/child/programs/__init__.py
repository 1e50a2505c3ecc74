"""Guest programs that come with the package; a topology names them without a path. Child side."""
