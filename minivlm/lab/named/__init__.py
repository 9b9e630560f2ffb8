"""What a user names on the command line: a method of the registry, or a class or function in a file of their own."""
