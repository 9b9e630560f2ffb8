"""What commands share: options, the model and its method, processes, evidence, results, the end."""
