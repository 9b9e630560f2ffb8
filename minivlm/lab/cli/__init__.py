"""What commands share: options, the model and its method, processes, results, the end. And the command `methods`."""
