"""What a method promises, tried on drawn tokens and in small random models; a broken promise is explained in words."""
