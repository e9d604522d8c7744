"""What does the work behind the ports: a folder or a module each, known to the rest by its row in `registry` alone."""
