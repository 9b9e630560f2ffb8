"""Files in and out: configurations, weights' files, pictures, text (io/text), a user's data, results."""
